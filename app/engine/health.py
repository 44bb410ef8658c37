"""Is the engine well? Each of its threads has a heartbeat, and one that is stuck or dead has none.

Two questions, as Kubernetes asks them. Ready: may requests come? Not while a thread is silent, or no worker has slots;
that may pass. Alive: can this process still serve, or is a new one the only remedy?
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

HEARTBEAT_SECONDS = 1.0  # between two heartbeats of a thread without work, and between two looks at them
STALE_SECONDS = 30.0  # a heartbeat older than this means a stuck engine: one chunk of scoring takes far less
DEAD_SECONDS = 300.0  # and than this, that it will not come back
EXIT_DEAD = 70  # of a process whose inference is dead; sysexits.h: an internal software error
log = logging.getLogger("whispergpt")


class ThreadDied(Exception):
    """A thread of the engine cannot go on; the message says why."""


def guarded(run: Callable[..., None], died: Callable[[str], None]) -> Callable[..., None]:
    """The target of a thread whose end by an error must not go unseen."""

    def target(*given: object) -> None:
        try:
            run(*given)
        except BaseException as error:
            name = threading.current_thread().name
            if not isinstance(error, ThreadDied):
                log.exception("the thread %s has failed", name)
            died(f"{name}: {error if isinstance(error, ThreadDied) else type(error).__name__}")

    return target


def end_process() -> None:
    """Ends the process at once, with `EXIT_DEAD`: a graceful end would wait for threads that do not come."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(EXIT_DEAD)


class Heartbeats:
    """When each thread last showed life."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._last: dict[int, float] = {}  # by the thread's ident, `time.monotonic` seconds

    def watch(self, threads: Iterable[threading.Thread]) -> None:
        """These threads, which run, are to show life from now on."""
        new, now = list(threads), time.monotonic()
        self._last |= {thread.ident or 0: now for thread in new}
        self._threads = [*self._threads, *new]  # another list: somebody may be looking through that one

    def forget(self, threads: Iterable[threading.Thread]) -> None:
        """These threads are about to end, as they should."""
        ending = set(threads)
        self._threads = [thread for thread in self._threads if thread not in ending]

    def heartbeat(self) -> None:
        """The calling thread shows life."""
        self._last[threading.get_ident()] = time.monotonic()

    @property
    def fresh(self) -> bool:
        """All threads live, and none has been silent for long."""
        return bool(self._threads) and self._younger_than(STALE_SECONDS)

    @property
    def lost(self) -> bool:
        """A thread is dead, or has been silent for so long that it must be taken for dead."""
        return not self._younger_than(DEAD_SECONDS)

    def _younger_than(self, seconds: float) -> bool:
        oldest = time.monotonic() - seconds
        return all(one.is_alive() and self._last[one.ident or 0] > oldest for one in self._threads)
