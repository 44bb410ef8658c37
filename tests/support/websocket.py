"""A client of a WebSocket that is driven in-process, on the service's event loop."""

import asyncio
import json
from typing import Any

from tests.support.service import Service


class Refused(Exception):
    """The server did not accept: its status and its body."""

    def __init__(self, status: int, body: Any, headers: dict[str, str]) -> None:
        super().__init__(status, body)
        self.status, self.body, self.headers = status, body, headers


class Left(Exception):
    """The client left as soon as it was accepted, as it was to do."""


class Socket:
    """Opens a session. Raises Refused, and Left where it ``leaves``.

    ``events`` holds all that came and was not taken by `take`.
    """

    def __init__(
        self,
        service: Service,
        path: str = "/v1/audio/session",
        protocols: tuple[str, ...] = (),
        headers: dict[str, str] | None = None,
        leaves: bool = False,
        query: str = "",
    ) -> None:
        self.service, self._leaves = service, leaves
        sent = {"host": "test"} | (headers or {})
        self._scope = {
            "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "root_path": "", "scheme": "ws", "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.4"},
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "subprotocols": list(protocols), "client": ("1.2.3.4", 5), "server": ("test", 80),
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        self._coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._coming.put_nowait({"type": "websocket.connect"})
        self.takes = asyncio.Event()  # cleared: the client takes nothing
        self.takes.set()
        self.done = asyncio.run_coroutine_threadsafe(self._run(), service.loop)
        first = self._next()
        if first["type"] == "websocket.http.response.start":
            body = self._next()["body"]
            raw = {name.decode(): value.decode() for name, value in first["headers"]}
            raise Refused(first["status"], json.loads(body), raw)
        assert first["type"] == "websocket.accept", first
        if leaves:
            self.done.result(10)
            raise Left
        self.protocol = first.get("subprotocol")
        self.headers = {name.decode(): value.decode() for name, value in first["headers"]}
        self.created = self.take("session.created")

    async def _run(self) -> None:
        async def send(message: Any) -> None:
            await self.takes.wait()
            if self._leaves and message["type"] == "websocket.send":
                raise OSError  # as ASGI servers tell it (its specification, "Send after close")
            self._told.put_nowait(message)

        await self.service.app(self._scope, self._coming.get, send)

    def _next(self, seconds: float = 60) -> dict[str, Any]:
        return self.service.wait(self._told.get(), seconds)

    def send(self, kind: str, **fields: Any) -> None:
        self.send_text(json.dumps({"type": kind, **fields}))

    def send_text(self, text: str) -> None:
        message = {"type": "websocket.receive", "text": text, "bytes": None}
        self.service.loop.call_soon_threadsafe(self._coming.put_nowait, message)

    def send_bytes(self, data: bytes) -> None:
        message = {"type": "websocket.receive", "bytes": data, "text": None}
        self.service.loop.call_soon_threadsafe(self._coming.put_nowait, message)

    def event(self, seconds: float = 60) -> dict[str, Any]:
        """The next event, whatever it is; what ends the connection is an event of the type `close`."""
        message = self._next(seconds)
        if message["type"] == "websocket.close":
            return {"type": "close", "code": message["code"]}
        event: dict[str, Any] = json.loads(message["text"])
        return event

    def until(self, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """All events before the next one of a type, and that one."""
        before: list[dict[str, Any]] = []
        while (event := self.event())["type"] != kind:
            assert event["type"] != "close", before
            before.append(event)
        return before, event

    def take(self, kind: str) -> dict[str, Any]:
        """The next event, which is of this type."""
        event = self.event()
        assert event["type"] == kind, event
        return event

    def leave(self) -> None:
        self.service.loop.call_soon_threadsafe(self._coming.put_nowait, {"type": "websocket.disconnect", "code": 1005})
        self.done.result(10)
