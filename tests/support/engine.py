"""Work that holds the engine until it is let go, and clients that leave."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from app.engine.prefill_pool import Kind, Work
from app.engine.requests import EngineRequest
from tests.support.waiting import HANG_SECONDS
from tests.support.waiting import until as until


def request_that(engine: Any, run: Callable[[EngineRequest], Any], kind: Kind = "read") -> EngineRequest:
    """Work of a test's own, for the engine's real threads."""
    asked = type("Asked", (EngineRequest,), {})
    engine.prefill_pool.work[asked] = Work(kind, run)
    now = time.monotonic()
    made: EngineRequest = asked(now, now + 60, None)
    return made


class Gate:
    """A request that holds a thread of the engine until it is opened: a real one, on the real thread."""

    def __init__(self, engine: Any, kind: Kind = "read") -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self._pool = engine.prefill_pool
        self.request = request_that(engine, self._hold, kind)

    def _hold(self, request: EngineRequest) -> None:
        self.entered.set()
        while not self.opened.wait(0.005):
            self._pool.go_on(request)


@contextmanager
def busy(service: Any) -> Iterator[None]:
    """The threads that read and score have work in hand, and nothing else gets its turn."""
    engine = service.app.state.engine
    kinds: tuple[Kind, ...] = ("read", "score")
    gates = [Gate(engine, kind) for kind in kinds for _ in range(service.app.state.settings.threads)]
    running = [asyncio.run_coroutine_threadsafe(engine.submit(gate.request), service.loop) for gate in gates]
    assert all(gate.entered.wait(HANG_SECONDS) for gate in gates)
    try:
        yield
    finally:
        for gate in gates:
            gate.opened.set()
        for one in running:
            one.result(HANG_SECONDS)


def in_background(service: Any, path: str, clip: bytes, **fields: str) -> Any:
    """A request under way; a future of its response."""
    sent = service.client.post(path, files={"file": ("a", clip)}, data=fields)
    return asyncio.run_coroutine_threadsafe(sent, service.loop)


class Client:
    """Sends a form, or a part of it, does with the answer's messages what `take` says, and leaves when told."""

    def __init__(self, service: Any, path: str, clip: bytes, part: float = 1.0, **fields: str) -> None:
        request = httpx.Request("POST", f"http://test{path}", files={"file": ("a", clip)}, data=fields)
        body = request.read()
        self.service = service
        self._body, self._whole = body[: int(len(body) * part)], part == 1.0
        self._scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"},
            "headers": [(key.lower(), value) for key, value in request.headers.raw],
            "client": ("1.2.3.4", 5), "server": ("test", 80),
        }  # fmt: skip
        self._left, self._on = asyncio.Event(), asyncio.Event()
        self.done = asyncio.run_coroutine_threadsafe(self._visit(), service.loop)

    async def _visit(self) -> None:
        begun = False

        async def receive() -> dict[str, Any]:
            nonlocal begun
            if not begun:
                begun = True
                body, self._body = self._body, b""  # not kept: some count the bytes that a request leaves
                return {"type": "http.request", "body": body, "more_body": not self._whole}
            await self._left.wait()
            return {"type": "http.disconnect"}

        await self.service.app(self._scope, receive, self.take)

    async def take(self, message: Any) -> None:
        """A message of the answer; the server waits for as long as this takes."""
        raise NotImplementedError

    def leave(self) -> None:
        self.service.loop.call_soon_threadsafe(self._left.set)
        self.done.result(HANG_SECONDS)

    def go_on(self) -> None:
        self.service.loop.call_soon_threadsafe(self._on.set)


class Visitor(Client):
    """Keeps all messages; after so many parts of the answer it takes no more, and stays."""

    def __init__(
        self, service: Any, path: str, clip: bytes, part: float = 1.0, takes: int | None = None, **fields: str
    ) -> None:
        self.sent: list[Any] = []
        self._takes = takes
        super().__init__(service, path, clip, part, **fields)

    async def take(self, message: Any) -> None:
        self.sent.append(message)
        if self._takes is not None and len(self.sent) > self._takes + 1:  # the first tells the status
            await self._left.wait()
