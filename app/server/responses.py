"""A whole answer on its way to its client: in parts, no faster than they are taken, and not for ever.

Handed over in one piece, an answer would lie with the server until its client takes it, and whoever takes nothing could
make the server hold any number of them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.errors import ClientGone
from app.server.disconnect import unless_gone
from app.server.logs import note

PART_BYTES = 65_536  # what a server's socket buffers before it makes the sender wait


class Stalled(Exception):
    """The client is there and takes nothing."""


async def handed_over(send: Send, message: Message, seconds: float) -> None:
    """Sends a part; waits while the socket's buffer is full. Raises Stalled after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await send(message)
    except TimeoutError:
        raise Stalled from None


@asynccontextmanager
async def while_sent(permit: AsyncExitStack, unread: asyncio.Semaphore) -> AsyncIterator[None]:
    """While an answer is sent: its permit is given back as soon as there is room among those ``unread``.

    At once, as a rule: whoever has the answer finds the permit free.
    """
    permitted = False

    async def give_back() -> None:
        nonlocal permitted
        await unread.acquire()
        permitted = True
        await permit.aclose()

    waiting = None
    if unread.locked():
        waiting = asyncio.create_task(give_back())
    else:
        await give_back()
    try:
        yield
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait([waiting])
        if permitted:
            unread.release()
        await permit.aclose()


class WholeResponse(Response):
    """Sends an answer that is made; takes over the request's permit. Ends when the client leaves or stalls."""

    def __init__(self, request: Request, answer: Response, permit: AsyncExitStack) -> None:
        self.status_code, self.body, self.background = answer.status_code, bytes(answer.body), None
        self.raw_headers = answer.raw_headers
        self._request, self._permit = request, permit.pop_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._request.app.state
        async with while_sent(self._permit, state.unread):
            try:
                await unless_gone(self._request, self._send_all(send), "send")
            except ClientGone as gone:
                state.metrics.disconnects.labels(gone.stage).inc()
                self._request.state.outcome = "disconnected"
                note(self._request, left_at=gone.stage)

    async def _send_all(self, send: Send) -> None:
        seconds = self._request.app.state.settings.send_timeout_seconds
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            for start in range(0, max(len(self.body), 1), PART_BYTES):
                part, more = self.body[start : start + PART_BYTES], start + PART_BYTES < len(self.body)
                await handed_over(send, {"type": "http.response.body", "body": part, "more_body": more}, seconds)
        except Stalled:
            raise ClientGone("stalled") from None
