"""What all models of an engine share, so that several take no more than one does: its slots and its cores."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

from app.engine.sequence import GeneratedSequence
from app.metrics import Metrics

Queue = Callable[[], Sequence[GeneratedSequence]]


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
        self._queues: list[Queue] = []
        metrics.slots.set(total)

    def share(self, queue: Queue) -> None:
        """The choices of one more model wait in a queue, in the order of their turns."""
        self._queues.append(queue)

    def part(self, queue: Queue) -> None:
        self._queues.remove(queue)

    def next_turn(self) -> int:
        return next(self._turns)

    def has_room(self, first: GeneratedSequence) -> bool:
        """Is there a slot for the first choice of a queue, and for each one that came before it?"""
        turn = first.running.turn
        before = sum(1 for queue in self._queues for _ in takewhile(lambda one: one.running.turn < turn, queue()))
        return self._used + before < self.total

    def take(self, count: int = 1) -> None:
        """So many slots are taken; a negative number gives them back."""
        self._used += count
        self._metrics.slots_used.set(self._used)


class Cores:
    """How many steps may be computed at the same time, of whatever models: none waits while a core is free.

    A core goes to who waits for longest. Who is not due, since all of its listeners have audio in hand, lets those go
    first who are: the pace rule (`app.engine.scheduler`), between models.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._due: deque[threading.Lock] = deque()  # each is held, and let go when its waiter has a core
        self._ahead: deque[threading.Lock] = deque()

    @contextmanager
    def one(self, due: bool) -> Iterator[None]:
        """A core for one step."""
        with self._lock:
            turn = None if self._free else threading.Lock()
            if turn is None:
                self._free -= 1
            else:
                turn.acquire()
                (self._due if due else self._ahead).append(turn)
        if turn is not None:
            turn.acquire()
        try:
            yield
        finally:
            with self._lock:
                waiting = self._due or self._ahead
                if waiting:
                    waiting.popleft().release()  # handed over: who comes just now does not get it before
                else:
                    self._free += 1
