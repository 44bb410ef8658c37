"""Memory that libraries hold though nobody uses it: bounded, or given back to the system.

Threads allocate from arenas of their own, and glibc keeps there what is freed, for allocations to come: in gaps between
small blocks that live on, and up to 64 MiB at each arena's end. No two prompts are of one length, so gaps seldom fit,
and a server's memory would creep up for thousands of requests.

oneDNN, which torch computes convolutions with, makes kernels for each shape that it meets, and keeps 1,024 of them
by default: another part of the same creeping up.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

GIVE_BACK_SECONDS = 15.0
M_ARENA_MAX = -8  # malloc.h of glibc
ARENAS = 2  # with one a thread, 13 of them, gaps took 31 MiB more after 400 requests; what was in use was the same
KERNELS = 128  # of oneDNN's, kept: with 64 a prompt of 5 s took 5 % longer to read, with 128 it did not


def keep_little() -> None:
    """Bounds what oneDNN keeps, and the arenas of glibc, unless the environment does.

    To be called before torch computes anything, and before there are many threads.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


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
