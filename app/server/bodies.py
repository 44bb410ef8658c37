"""What all bodies together may hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import Overloaded
from app.metrics import Metrics
from app.settings import Settings

RETRY_SECONDS = 5  # until some of the bodies that are held have been read


class Bodies:
    """The bytes of all bodies that are held: up to 1 MiB a file in memory, else in /tmp, which may be memory as well.

    They count when they arrive: what a client only announces keeps nobody out.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.most = round(max(settings.max_bodies_mib, settings.max_upload_mib) * 2**20)
        self.held = 0
        self._metrics = metrics

    @contextmanager
    def one(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of one body until it is gone. What it yields raises Overloaded when they are too many."""
        own = 0

        def add(count: int) -> None:
            nonlocal own
            own += count
            self.held += count
            if self.held > self.most:
                self._metrics.rejected.labels("bodies").inc()
                message = f"all uploads together may hold {self.most / 2**20:g} MiB"
                raise Overloaded(message, headers={"retry-after": str(RETRY_SECONDS)})

        try:
            yield add
        finally:
            self.held -= own
