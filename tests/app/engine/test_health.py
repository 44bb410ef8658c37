"""Probes tell the truth, slots are renewed, and a process without inference ends."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine import engine as engine_module
from app.engine import health
from app.engine.requests import ContinueRequest
from app.errors import Draining, NotReady
from model.checkpoint import Bundle
from model.inference.backend import Backend
from model.inference.sampling import SamplingOptions
from model.inference.torch_backend import TorchBackend
from model.inference.types import Frames
from tests.support.live import free_port
from tests.support.waiting import HANG_SECONDS, until

ROOT = Path(__file__).parents[3]


class Failing(TorchBackend):
    """Slots whose step fails as soon as a row with seed 13 is in it."""

    def step(self, active: Sequence[int]) -> Frames:
        if any(self._options[row].seed == 13 for row in active):
            raise ZeroDivisionError
        return super().step(active)


class Broken(TorchBackend):
    """Slots that can be made, and cannot make a frame."""

    def step(self, active: Sequence[int]) -> Frames:
        raise ZeroDivisionError


class Device:
    """Makes slots: good ones at first, and for each renewal what the test has in mind."""

    def __init__(self, later: Callable[[Bundle, int, int | None], Backend], good: int = 1) -> None:
        self.made, self.good, self.later = 0, good, later

    def __call__(self, bundle: Bundle, rows: int, codebooks: int | None = None) -> Backend:
        self.made += 1
        return (Failing if self.made <= self.good else self.later)(bundle, rows, codebooks)


def lost(*given: Any) -> Backend:
    raise MemoryError("the device is gone")


def fails_twice(device: list[Device]) -> Callable[..., Backend]:
    return lambda *given: lost() if device[0].made <= 3 else Failing(*given)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set where the process would have ended."""
    at_end = threading.Event()
    monkeypatch.setattr(health, "end_process", at_end.set)
    monkeypatch.setattr(engine_module, "LAST_WORDS_SECONDS", 2.0)
    return at_end


def pauses(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    monkeypatch.setattr("app.engine.worker.RENEWAL_PAUSES_SECONDS", seconds)


def job(speech: Any, seed: int = 1, frames: int = 20) -> ContinueRequest:
    now = time.monotonic()
    return ContinueRequest(now, now + HANG_SECONDS / 2, speech, frames, SamplingOptions(seed=seed), 1)


def statuses(service: Any) -> tuple[int, int]:
    """Of /livez and /readyz."""
    return service.get("/livez").status_code, service.get("/readyz").status_code


def test_slots_are_renewed_though_it_fails_at_first(
    serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    """Meanwhile the server is alive and not ready; then all is as before."""
    found: list[Device] = []
    found.append(Device(fails_twice(found)))
    monkeypatch.setattr(engine_module, "backend_for", found[0])
    pauses(monkeypatch, 0.0, 0.5, 1.0, 1.0)
    service = serve(threads=1)
    engine = service.app.state.engine
    assert statuses(service) == (200, 200)
    before = service.wait(engine.submit(job(speech)))
    with pytest.raises(ZeroDivisionError):
        service.wait(engine.submit(job(speech, 13)))
    until(lambda: statuses(service) == (200, 503))
    with pytest.raises(NotReady), engine.acquire():
        pass
    until(lambda: statuses(service) == (200, 200))
    assert found[0].made == 4
    after = service.wait(engine.submit(job(speech)))
    np.testing.assert_array_equal(after.samples[0], before.samples[0])
    assert not ended.is_set()


@pytest.mark.parametrize("later", [lost, Broken], ids=["no slots", "slots that make no frame"])
def test_a_process_without_inference_ends(
    serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, ended: threading.Event, caplog: Any, later: Any
) -> None:
    device = Device(later)
    monkeypatch.setattr(engine_module, "backend_for", device)
    pauses(monkeypatch, 0.0, 0.1, 0.5)
    service = serve(threads=1)
    engine = service.app.state.engine
    with pytest.raises(ZeroDivisionError):
        service.wait(engine.submit(job(speech, 13)))
    with pytest.raises((NotReady, Draining)):  # who waits for a slot is told, and does not wait until its time is up
        service.wait(engine.submit(job(speech)))
    assert ended.wait(HANG_SECONDS)
    assert statuses(service) == (503, 503)
    assert device.made == 4
    assert (
        "inference is dead (decode-0: slots could not be renewed in 3 tries): the process ends with exit code 70"
        in (caplog.text)
    )


def test_others_serve_while_a_worker_has_no_slots(
    serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    """They take what waits, though the one without slots has the fewest rows."""
    monkeypatch.setattr(engine_module, "workers_for", lambda bundle, threads: 2)
    monkeypatch.setattr(engine_module, "backend_for", Device(lost, good=2))
    pauses(monkeypatch, 0.0, 1e6)
    service = serve(threads=1, slots=8)
    engine = service.app.state.engine
    with pytest.raises(ZeroDivisionError):
        service.wait(engine.submit(job(speech, 13)))
    until(lambda: sum(engine.workers._serving) == 1)
    assert statuses(service) == (200, 200)

    async def together() -> list[Any]:
        return await asyncio.gather(*(engine.submit(job(speech, seed, 200)) for seed in range(3)))

    assert [len(made.tokens[0]) for made in service.wait(together())] == [200] * 3
    service.wait(asyncio.to_thread(engine.stop))
    until(lambda: not any(thread.is_alive() for thread in engine.workers.threads))  # the pause ends with the server
    assert not ended.is_set()


def test_a_thread_that_ends_by_an_error_is_seen(
    serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    service = serve(threads=1)
    engine = service.app.state.engine
    monkeypatch.setattr(engine.admission, "begin", lambda request: 1 / 0)
    with pytest.raises((NotReady, Draining)):
        service.wait(engine.submit(job(speech)))
    assert ended.wait(HANG_SECONDS)
    assert statuses(service) == (503, 503)


def test_a_thread_that_is_silent_for_long_is_taken_for_dead(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve(threads=1)
    assert statuses(service) == (200, 200)
    beats = service.app.state.engine._heartbeats
    thread = service.app.state.engine.prefill_pool.threads[0].ident
    last = dict(beats._last)
    monkeypatch.setattr(beats, "_last", last)  # and nobody writes it
    monkeypatch.setattr(beats, "heartbeat", lambda: None)
    now = time.monotonic()
    monkeypatch.setattr(beats, "_last", dict.fromkeys(last, now) | {thread: now - health.STALE_SECONDS - 1})
    assert statuses(service) == (200, 503)
    monkeypatch.setattr(beats, "_last", dict.fromkeys(last, now) | {thread: now - health.DEAD_SECONDS - 1})
    assert statuses(service) == (503, 503)


SERVER = """
import sys
import app.engine.worker
from app.engine import engine
from model.inference.torch_backend import TorchBackend

made = 0

class Failing(TorchBackend):
    def step(self, active):
        if any(self._options[row].seed == 13 for row in active):
            raise ZeroDivisionError
        return super().step(active)

def backend_for(*given):
    global made
    made += 1
    if made > 1:
        raise MemoryError
    return Failing(*given)

engine.backend_for = backend_for
app.engine.worker.RENEWAL_PAUSES_SECONDS = (0.0, 0.2)
from app.cli.main import main
main()
"""


def ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    """Whether it answers; it may not end before."""
    assert process.poll() is None
    with suppress(httpx.TransportError):
        assert client.get("/readyz").status_code == 200
        return True
    return False


def test_a_real_process_ends_with_a_line_and_a_code(saved_bundle: Path, tmp_path: Path, clip: bytes) -> None:
    """The command itself, with a request that breaks its only slots for good."""
    port = free_port()
    command = [sys.executable, "-c", SERVER, "serve", "--port", str(port), "--bundle", str(saved_bundle)]
    with (tmp_path / "log").open("w+") as written:
        process = subprocess.Popen([*command, "--threads", "1"], stdout=written, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                until(lambda: ready(client, process), (tmp_path / "log").read_text, 0.2)
                answer = client.post("/continue", files={"file": ("a", clip)}, data={"seconds": "1", "seed": "13"})
                assert answer.status_code == 500
            assert process.wait(HANG_SECONDS) == health.EXIT_DEAD
        finally:
            process.kill()
            process.wait()
    assert "inference is dead (decode-0: slots could not be renewed in 2 tries)" in (tmp_path / "log").read_text()
