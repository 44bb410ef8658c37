"""What clients ask several processes for, counted together: in a database that is a file of theirs.

`limits` counts in memory, which is a process's own, or in servers (Redis and others), which a host would have to run.
SQLite is in Python, and what it has to do here takes 0.1 ms in shared memory; a process that is killed in the middle of
it leaves the counts as they were.
"""

import logging
import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limits.aio.storage import SlidingWindowCounterSupport, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage.base import TimestampedSlidingWindow

from app.metrics import Metrics
from app.server.limits import Limits
from app.settings import Settings
from app.shared import Shared

PATIENCE_SECONDS = 0.25  # for others to be done; who is stopped in the middle shall not hold up everyone's requests
TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE counts (key TEXT PRIMARY KEY, amount INTEGER NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE inside (process INTEGER, client TEXT, amount INTEGER NOT NULL, PRIMARY KEY (process, client))
WITHOUT ROWID;
"""
COUNT = "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount"
ENTER = "INSERT INTO inside VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET amount = amount + 1"
log = logging.getLogger("whispergpt")


class Counts:
    """The database. For one thread."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = OFF")  # the file does not outlive the machine

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Nobody else changes anything meanwhile. Raises sqlite3.OperationalError."""
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            yield self._database

    def get(self, key: str, now: float) -> int:
        row = self._database.execute("SELECT amount FROM counts WHERE key = ? AND expires > ?", (key, now)).fetchone()
        return row[0] if row else 0

    def close(self) -> None:
        self._database.close()


def make(path: Path) -> None:
    """The database, before anybody counts. Its log of what is to be written undoes what a kill leaves unfinished."""
    counts = sqlite3.connect(path)
    counts.executescript(TABLES)
    counts.close()


def forget(path: Path, process: int) -> None:
    """A process is gone, and with it all that was inside of it."""
    if not path.exists():  # no limits
        return
    counts = Counts(path)
    try:
        with counts.changing() as database:
            database.execute("DELETE FROM inside WHERE process = ?", (process,))
    except sqlite3.OperationalError as error:
        log.warning("requests of a process that is gone still count (%s)", error)
    finally:
        counts.close()


class SharedStorage(Storage, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """Counters of `limits` that several processes add to. A count that cannot be had in time lets a request pass."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    @property
    def base_exceptions(self) -> type[Exception]:
        return sqlite3.Error

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        try:
            with self._counts.changing() as database:
                previous, previous_left, current, _ = self._window(key, expiry)
                if math.floor(previous * previous_left / expiry + current) + amount > limit:
                    return False
                now = time.time()
                database.execute("DELETE FROM counts WHERE expires <= ?", (now,))
                name = self.sliding_window_keys(key, expiry, now)[1]
                database.execute(COUNT, (name, amount, now + 2 * expiry))
        except sqlite3.OperationalError as error:
            log.warning("a request is not counted (%s)", error)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        return self._window(key, expiry)

    def _window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """As the package's storage in memory tells it: counts, and for how long they count, previous and current."""
        now = time.time()
        previous, current = (self._counts.get(name, now) for name in self.sliding_window_keys(key, expiry, now))
        left = (1 - now / expiry % 1) * expiry
        return previous, left if previous else 0.0, current, left + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        for name in self.sliding_window_keys(key, expiry, time.time()):
            await self.clear(name)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = time.time()
        with self._counts.changing() as database:
            database.execute("DELETE FROM counts WHERE key = ? AND expires <= ?", (key, now))
            database.execute(COUNT, (key, amount, now + expiry))
            return self._counts.get(key, now)

    async def get(self, key: str) -> int:
        return self._counts.get(key, time.time())

    async def get_expiry(self, key: str) -> float:
        with self._counts.changing() as database:
            row = database.execute("SELECT expires FROM counts WHERE key = ?", (key,)).fetchone()
        return row[0] if row else time.time()

    async def check(self) -> bool:
        return True

    async def clear(self, key: str) -> None:
        with self._counts.changing() as database:
            database.execute("DELETE FROM counts WHERE key = ?", (key,))

    async def reset(self) -> int | None:
        with self._counts.changing() as database:
            return database.execute("DELETE FROM counts").rowcount


class SharedLimits(Limits):
    """`Limits` that all processes of a server count together."""

    def __init__(self, settings: Settings, metrics: Metrics, shared: Shared) -> None:
        super().__init__(settings, metrics)
        self._counts, self._process = Counts(shared.limits), shared.index
        self._limiter = SlidingWindowCounterRateLimiter(SharedStorage(self._counts))

    def _enter(self, client: str, most: int) -> bool:
        try:
            with self._counts.changing() as database:
                asked = "SELECT coalesce(sum(amount), 0) FROM inside WHERE client = ?"
                if database.execute(asked, (client,)).fetchone()[0] >= most:
                    return False
                database.execute(ENTER, (self._process, client))
        except sqlite3.OperationalError as error:
            log.warning("a request is not counted (%s)", error)
            return True
        self.inside[client] += 1
        return True

    def _leave(self, client: str) -> None:
        if not self.inside[client]:  # it was not counted
            return
        super()._leave(client)
        try:
            with self._counts.changing() as database:
                what = "UPDATE inside SET amount = amount - 1 WHERE process = ? AND client = ?"
                database.execute(what, (self._process, client))
                database.execute("DELETE FROM inside WHERE amount <= 0")
        except sqlite3.OperationalError as error:
            log.warning("a request that has ended still counts (%s)", error)
