"""Memory that the C library holds though nobody uses it: given back to the system.

Threads allocate from arenas of their own, and glibc keeps there what is freed, for allocations to come: in gaps between
small blocks that live on, and up to 64 MiB at each arena's end. No two prompts are of one length, so gaps seldom fit,
and a server's memory would creep up for thousands of requests.
"""

import asyncio
import ctypes
from collections.abc import Callable

GIVE_BACK_SECONDS = 15.0


def trimmer() -> Callable[[], None] | None:
    """What gives free memory back (malloc_trim(3), without Python's lock); None where the C library has no such."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has none to ask
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: trim(0)


async def keep_small(work: Callable[[], object], seconds: float = GIVE_BACK_SECONDS) -> None:
    """Gives free memory back every so many seconds, unless ``work`` tells what it told before: then none was done."""
    trim, before = trimmer(), work()
    while trim is not None:
        await asyncio.sleep(seconds)
        if (now := work()) != before:
            await asyncio.to_thread(trim)
        before = now
