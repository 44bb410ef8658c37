"""What all models of an engine share, so that several take no more than one does: its slots and its cores."""

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

from app.engine.scheduler import PLAYBACK_LEAD_SECONDS
from app.engine.sequence import GeneratedSequence
from app.metrics import Metrics

Queue = Callable[[], Sequence[GeneratedSequence]]
PATIENCE_SECONDS = PLAYBACK_LEAD_SECONDS / 2  # of who has audio in hand, before nobody goes first any more


class SlotBudget:
    """How many rows may be taken at the same time, of whatever models.

    Slots go to choices in the order in which these came: a model with many requests keeps no other one waiting for
    longer than one queue would. Whoever calls a method holds ``changed``, which is notified of all that a decode worker
    may wait for.
    """

    def __init__(self, total: int, metrics: Metrics) -> None:
        self.changed = threading.Condition()
        self.total, self._used, self._metrics = total, 0, metrics
        self._turns = itertools.count()
        self._queues: list[tuple[Queue, Callable[[], int]]] = []
        metrics.slots.set(total)

    def share(self, queue: Queue, rows: Callable[[], int] = lambda: sys.maxsize) -> None:
        """The choices of one more model wait in a queue, in the order of their turns; ``rows`` of them could join."""
        self._queues.append((queue, rows))

    def part(self, queue: Queue) -> None:
        self._queues = [one for one in self._queues if one[0] != queue]

    def next_turn(self) -> int:
        return next(self._turns)

    def has_room(self, first: GeneratedSequence) -> bool:
        """Is there a slot for the first choice of a queue, and for each one that came before it and could use one?"""
        turn = first.running.turn
        before = sum(
            min(rows(), sum(1 for _ in takewhile(lambda one: one.running.turn < turn, queue())))
            for queue, rows in self._queues
        )
        return self._used + before < self.total

    def take(self, count: int = 1) -> None:
        """So many slots are taken; a negative number gives them back."""
        self._used += count
        self._metrics.slots_used.set(self._used)


class Cores:
    """How many steps may be computed at the same time, of whatever models: none waits while a core is free.

    A core goes to who waits for longest. Who is not due, since all of its listeners have audio in hand, lets those go
    first who are: the pace rule (`app.engine.scheduler`), between models. For so long as the audio lasts: more threads
    than cores that are always due would keep it for ever.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free, self._clock = count, clock
        self._lock = threading.Lock()
        self._due: deque[threading.Lock] = deque()  # each is held, and let go when its waiter has a core
        self._ahead: deque[tuple[float, threading.Lock]] = deque()  # with the time when they are due

    @contextmanager
    def one(self, due: bool) -> Iterator[None]:
        """A core for one step."""
        with self._lock:
            turn = None if self._free else threading.Lock()
            if turn is None:
                self._free -= 1
            else:
                turn.acquire()
                if due:
                    self._due.append(turn)
                else:
                    self._ahead.append((self._clock() + PATIENCE_SECONDS, turn))
        if turn is not None:
            turn.acquire()
        try:
            yield
        finally:
            with self._lock:
                # handed over: who comes just now does not get it before
                if self._ahead and (not self._due or self._ahead[0][0] <= self._clock()):
                    self._ahead.popleft()[1].release()
                elif self._due:
                    self._due.popleft().release()
                else:
                    self._free += 1
