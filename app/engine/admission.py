"""How many requests may be inside, and when those that may not should come again."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.engine.requests import EngineRequest
from app.errors import Draining, NotReady, Overloaded
from app.metrics import Metrics

SOON = {"retry-after": "5"}  # when this server, or another in its place, may be ready
LONGEST_WAIT_SECONDS = 120


class Admission:
    """Permits, one a request, from before its body is read until its answer is ready.

    Permits belong to the event loop alone and need no lock; threads tell which requests they have taken up.

    Args:
        permits: requests that may be inside.
        slots: how many of them are computed at the same time.
        metrics: where to count.
        healthy: does the engine answer?
    """

    def __init__(self, permits: int, slots: int, metrics: Metrics, healthy: Callable[[], bool]) -> None:
        self.permits, self.in_use = permits, 0
        self.admitted = 0  # requests, so far
        self.draining = False  # no more are admitted
        self.empty = asyncio.Event()  # no request is inside
        self.empty.set()
        self._slots, self._metrics, self._healthy = slots, metrics, healthy
        self._recent_seconds = 1.0  # what a request took of late
        self._computing = 0  # requests that a thread has taken up and that have not ended
        self._sessions = 0  # permits of sessions, which wait for nothing unless they ask for it
        self._asked = 0  # requests within sessions that no thread has taken up yet
        self._within = 0  # and of those that compute
        self._lock = threading.Lock()  # of that count, of each request's `begun`, and of the gauges

    @contextmanager
    def acquire(self, make_room: Callable[[], bool] = lambda: False, session: bool = False) -> Iterator[None]:
        """A permit for a request, or a whole session. Raises Overloaded, Draining or NotReady.

        ``make_room``: asked when there is none. It may have another request give its permit back in a moment, and says
        whether it has.
        """
        if self.draining:
            self._metrics.rejected.labels("draining").inc()
            raise Draining("the server is shutting down", headers=SOON)
        if not self._healthy():
            self._metrics.rejected.labels("not_ready").inc()
            raise NotReady("the engine does not answer", headers=SOON)
        if self.in_use >= self.permits and not make_room():
            self._metrics.rejected.labels("overloaded").inc()
            headers = {"retry-after": str(self.retry_after_seconds)}
            raise Overloaded(f"all {self.permits} permits are in use", headers=headers)
        self.in_use += 1
        self._sessions += session
        self.admitted += 1
        self.empty.clear()
        self._show()
        try:
            yield
        finally:
            self.in_use -= 1
            self._sessions -= session
            if not self.in_use:
                self.empty.set()
            self._show()

    @property
    def retry_after_seconds(self) -> int:
        """When those that are inside now will be done, as far as the last ones tell."""
        wait = round(self._recent_seconds * self.in_use / self._slots)
        return min(max(wait, 1), LONGEST_WAIT_SECONDS)

    def ask(self, request: EngineRequest) -> None:
        """A request has been submitted."""
        with self._lock:
            self._asked += request.within_session
        self._show()

    def begin(self, request: EngineRequest) -> bool:
        """A thread takes a request up: False when nobody waits for it any more."""
        with self._lock:
            if request.cancelled.is_set():
                return False
            request.begun = True
            self._computing += 1
            self._asked -= request.within_session
            self._within += request.within_session
        self._show()
        return True

    def end(self, request: EngineRequest, answered: bool) -> None:
        """A request has its answer, or nobody waits for one: then it is cancelled."""
        with self._lock:
            if not answered:
                request.cancelled.set()
            self._computing -= request.begun
            self._within -= request.within_session and request.begun
            self._asked -= request.within_session and not request.begun
        if answered and request.started and not request.part:
            self._recent_seconds = 0.8 * self._recent_seconds + 0.2 * (time.monotonic() - request.started)
        self._show()

    def _show(self) -> None:
        with self._lock:  # or a thread could write what was true before
            self._metrics.running.set(self._computing)
            own = self.in_use - self._sessions - (self._computing - self._within)
            self._metrics.waiting.set(max(own, 0) + self._asked)
