"""The service under test: the real application and a real, tiny model, on an event loop of its own."""

import asyncio
import io
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
import soundfile
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from model.checkpoint import Bundle
from tests.support.waiting import HANG_SECONDS

T = TypeVar("T")


class Service:
    """The application, driven in-process; each method waits for its answer."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self.app, self.loop = app, loop
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG_SECONDS)

    def wait(self, work: Coroutine[Any, Any, T], seconds: float = HANG_SECONDS) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.wait(self.client.get(path, **options))

    def post(self, path: str, *files: bytes, **options: Any) -> httpx.Response:
        """A form with these files; ``data`` and ``headers`` as httpx has them."""
        parts = [("file", (f"clip{index}", content)) for index, content in enumerate(files)]
        return self.wait(self.client.post(path, files=parts or None, **options))

    def value(self, name: str, **labels: str) -> float:
        """A metric's sample, 0 when it has none yet."""
        found = self.app.state.metrics.registry.get_sample_value(f"whispergpt_{name}", labels)
        return 0.0 if found is None else float(found)


@contextmanager
def serving(*bundles: Bundle, **settings: Any) -> Iterator[Service]:
    """The application with these bundles; without any, with those of the settings."""
    app = create_app(Settings(**({"drain_seconds": 5, "decoder_processes": False} | settings)), *bundles)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = Service(app, loop)
    span = app.router.lifespan_context(app)
    try:
        service.wait(span.__aenter__())
        try:
            yield service
        finally:
            service.wait(service.client.aclose())
            service.wait(span.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def sound(samples: Any, rate: int = 24_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    """An audio file: samples (N,) or (N, channels)."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1 if np.ndim(samples) == 1 else np.shape(samples)[1], subtype,
                             format=form) as file:  # fmt: skip
        for start in range(0, len(samples), 65_536):
            file.write(samples[start : start + 65_536])
    return out.getvalue()
