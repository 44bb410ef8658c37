"""Is the engine well? Each of its threads has a heartbeat, and one that is stuck or dead has none."""

import threading
import time
from collections.abc import Iterable

HEARTBEAT_SECONDS = 1.0  # between two heartbeats of a thread without work, and between two looks at them
STALE_SECONDS = 30.0  # a heartbeat older than this means a stuck engine: one chunk of scoring takes far less


class Heartbeats:
    """When each thread last showed life."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._last: dict[int, float] = {}  # by the thread's ident, `time.monotonic` seconds

    def watch(self, threads: Iterable[threading.Thread]) -> None:
        """These threads, which run, are to show life from now on."""
        now = time.monotonic()
        for thread in threads:
            self._threads.append(thread)
            self._last[thread.ident or 0] = now

    def beat(self) -> None:
        """The calling thread shows life."""
        self._last[threading.get_ident()] = time.monotonic()

    @property
    def fresh(self) -> bool:
        """All threads live, and none has been silent for long."""
        if not self._threads:
            return False
        oldest = time.monotonic() - STALE_SECONDS
        return all(one.is_alive() and self._last[one.ident or 0] > oldest for one in self._threads)
