"""Between Ray Serve's replica and the application: what uvicorn would have told the application, told in its words."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = b"x-request-id"
LEAVE_SECONDS = 5.0  # for the application to end a request whose client has left: it takes one step, or one chunk
LEFT: dict[str, Message] = {
    "http": {"type": "http.disconnect"},
    "websocket": {"type": "websocket.disconnect", "code": 1006},
}


class EndedEarly(Exception):
    """The application left an answer without its end: the client must not take the part for the whole."""


class Ingress:
    """Hands requests on.

    * Ray cancels the handler when a client leaves. The application would take that for the end of the server, as it is
      under uvicorn: so it is told that the client has left, and ends by itself.
    * An answer that the application leaves without its end is an error, upon which Ray's proxy cuts the connection; it
      would end the answer as if it were whole.
    * Ray's proxy gives each answer the `x-request-id` of its request, after it has made one where there was none: ours,
      the same, would stand there twice.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in LEFT:
            await self._app(scope, receive, send)
            return
        given = _request_id(scope["headers"])
        left = asyncio.Event()
        begun = ended = False

        async def send_once_named(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "http.response.start":
                begun = True
                headers = message.get("headers", [])
                message["headers"] = [one for one in headers if (one[0].lower(), one[1]) != (REQUEST_ID, given)]
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        incoming = _Until(scope["type"], receive, left)
        asked = asyncio.ensure_future(self._app(scope, incoming, send_once_named))
        try:
            await asyncio.shield(asked)
        except asyncio.CancelledError:
            left.set()
            await asyncio.wait({asked}, timeout=LEAVE_SECONDS)
            if not asked.done():
                asked.cancel()
            with suppress(Exception):  # nobody is there to be told
                await asyncio.gather(asked, return_exceptions=True)
            raise
        finally:
            incoming.close()
        if begun and not ended and not left.is_set():
            raise EndedEarly


class _Until:
    """A `receive` that tells that the client has left as soon as ``left`` is set, whatever Ray still has."""

    def __init__(self, kind: str, receive: Receive, left: asyncio.Event) -> None:
        self._kind, self._receive, self._left = kind, receive, left
        self._coming: asyncio.Task[Message] | None = None  # what a caller that was cancelled would have got

    async def __call__(self) -> Message:
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._receive())
        gone = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait({self._coming, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if self._left.is_set():
            self._coming.cancel()
            return dict(LEFT[self._kind])
        coming, self._coming = self._coming, None
        return coming.result()

    def close(self) -> None:
        """Waits for nothing any more: the application has ended, though its client has not left."""
        if self._coming is not None:
            self._coming.cancel()


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    return next((value for name, value in headers if name == REQUEST_ID), None)
