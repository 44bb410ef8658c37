"""Waiting for work while watching the client."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from app.errors import ClientGone

T = TypeVar("T")


async def _left(request: Request) -> None:
    """Returns when the client has left; the body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], stage: str | Callable[[], str]) -> T:
    """The result of ``work``, which is cancelled when the client leaves. Raises ClientGone then, with the stage.

    A plain handler runs to its end after the client has gone, and the slot with it.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone(stage if isinstance(stage, str) else stage())
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
        del task, one  # the task's error holds this frame: they would keep each other alive, and all that was at work
