"""What all bodies together may hold, and which of them gives way when there is no room for another request."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Overloaded, UploadTimeout
from app.metrics import Metrics
from app.settings import Settings

RETRY_SECONDS = 5  # until some of the bodies that are held have been read
FAIR_BYTES = 8_192  # a second: who sends more keeps the place that his request has, whoever waits
FAIR_AFTER_SECONDS = 2.0


class Body:
    """One that arrives: its bytes so far, and how long they may take."""

    def __init__(self, bodies: "Bodies", seconds: float) -> None:
        self.began, self.held, self.arriving = time.monotonic(), 0, True
        self._bodies, self._seconds = bodies, seconds
        self._late = f"the body did not arrive within {seconds:g} s"
        self._patience: asyncio.Timeout | None = None  # while its next piece is waited for

    @contextmanager
    def told(self) -> Iterator[None]:
        """A time that is up is the client's fault. Raises UploadTimeout."""
        try:
            yield
        except TimeoutError:
            raise UploadTimeout(self._late) from None

    def patience(self) -> asyncio.Timeout:
        """For the next piece; raises TimeoutError when the whole body's time is up."""
        self._patience = asyncio.timeout(self.began + self._seconds - time.monotonic())
        return self._patience

    def add(self, count: int) -> None:
        """A piece has come. Raises Overloaded when all bodies together are too much."""
        self._patience = None
        self.held += count
        self._bodies.add(count)

    def bytes_a_second(self) -> float:
        return self.held / max(time.monotonic() - self.began, 1e-9)

    @property
    def crawls(self) -> bool:
        """It arrives so slowly that it has to give way."""
        return (
            self.arriving and time.monotonic() > self.began + FAIR_AFTER_SECONDS and self.bytes_a_second() < FAIR_BYTES
        )

    def give_way(self) -> None:
        self.arriving, self._seconds = False, 0.0
        self._late = f"the body came slower than {FAIR_BYTES // 1024} KiB a second, and others wait"
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time())


class Bodies:
    """The bytes of all bodies that are held: up to 1 MiB a file in memory, else in /tmp, which may be memory as well.

    They count when they arrive: what a client only announces keeps nobody out.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.most = round(max(settings.max_bodies_mib, settings.max_upload_mib) * 2**20)
        self.held = 0
        self._seconds = settings.upload_timeout_seconds
        self._all: set[Body] = set()
        self._metrics = metrics

    @contextmanager
    def one(self) -> Iterator[Body]:
        """A body, from now on until it is gone."""
        body = Body(self, self._seconds)
        self._all.add(body)
        try:
            yield body
        finally:
            self._all.discard(body)
            self.held -= body.held

    def add(self, count: int) -> None:
        """Raises Overloaded when they are too many."""
        self.held += count
        if self.held > self.most:
            self._metrics.rejected.labels("bodies").inc()
            message = f"all uploads together may hold {self.most / 2**20:g} MiB"
            raise Overloaded(message, headers={"retry-after": str(RETRY_SECONDS)})

    def make_room(self) -> bool:
        """Ends the upload that crawls most: its permit is free in a moment. False when none does.

        A permit is acquired before a body is read. Without this a few clients that send a byte a second would hold all
        of them for as long as a body may take, and keep everybody out.
        """
        slowest = min((body for body in self._all if body.crawls), key=Body.bytes_a_second, default=None)
        if slowest is None:
            return False
        slowest.give_way()
        return True
