"""Between a route and the engine: waiting for work while watching the client."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from app.errors import ClientGone
from app.settings import Settings

T = TypeVar("T")


async def _left(request: Request) -> None:
    """Returns when the client has left; the body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], stage: str) -> T:
    """The result of ``work``, which is cancelled when the client leaves. Raises ClientGone then.

    A plain handler runs to its end after the client has gone, and the slot with it.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone(stage)
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def deadline(request: Request, settings: Settings, wanted: float | None) -> tuple[float, float]:
    """When the request arrived and when its time is up, `time.monotonic` seconds."""
    arrived: float = request.state.arrived
    return arrived, arrived + min(wanted or settings.timeout_seconds, settings.timeout_seconds)


def remaining(until: float) -> float:
    return max(until - time.monotonic(), 0.0)
