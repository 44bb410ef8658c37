"""Slots in the order in which choices came, and cores for who waits for longest: of whatever models."""

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

from app.engine.budget import PATIENCE_SECONDS, Cores, SlotBudget
from app.metrics import Metrics
from tests.support.waiting import until


def choice(turn: int) -> Any:
    return SimpleNamespace(running=SimpleNamespace(turn=turn))


def test_slots_go_to_who_came_first() -> None:
    budget = SlotBudget(2, Metrics())
    one: deque[Any] = deque(choice(turn) for turn in (0, 2, 3))
    other: deque[Any] = deque([choice(1)])
    queues = [lambda: one, lambda: other]
    for queue in queues:
        budget.share(queue)
    assert budget.has_room(one[0]) and budget.has_room(other[0])
    one.popleft()
    budget.take()
    assert budget.has_room(other[0])
    assert not budget.has_room(one[0]), "the one slot that is left is the other's"
    other.popleft()
    budget.take()
    assert not budget.has_room(one[0])
    budget.take(-1)
    assert budget.has_room(one[0])
    other.append(choice(1))
    budget.part(queues[1])
    assert budget.has_room(one[0]), "a model that is gone keeps no place"


def test_choices_that_cannot_join_keep_no_slot_from_others() -> None:
    """A model with few rows, or whose worker has no slots just now, may have many that came first."""
    budget = SlotBudget(8, Metrics())
    many: deque[Any] = deque(choice(turn) for turn in range(20))
    other: deque[Any] = deque([choice(20)])
    free = 2
    budget.share(lambda: many, lambda: free)
    budget.share(lambda: other, lambda: 8)
    assert budget.has_room(other[0])
    budget.take(6)
    assert not budget.has_room(other[0]), "the two that are left are those of who came first"
    free = 0
    assert budget.has_room(other[0])


def worker(cores: Cores, name: str, due: bool, order: list[str], go: threading.Event) -> threading.Thread:
    def work() -> None:
        with cores.one(due):
            order.append(name)
            go.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_core_goes_to_who_is_due_and_waits_longest() -> None:
    cores, go = Cores(1), threading.Event()
    order: list[str] = []
    threads = [worker(cores, "first", True, order, go)]
    until(lambda: order == ["first"])
    for name, due in (("ahead", False), ("due", True), ("due later", True), ("ahead later", False)):
        waiting = len(cores._due) + len(cores._ahead)
        threads.append(worker(cores, name, due, order, go))
        until(lambda before=waiting: len(cores._due) + len(cores._ahead) == before + 1)  # type: ignore[misc]
    go.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "due", "due later", "ahead", "ahead later"]
    with cores.one(True), cores._lock:
        assert cores._free == 0


def test_who_has_audio_in_hand_stands_back_only_while_it_lasts() -> None:
    """With more threads that are always due than cores, it would never have its turn."""
    now, go = 0.0, threading.Event()
    cores = Cores(1, clock=lambda: now)
    order: list[str] = []
    threads = [worker(cores, "first", True, order, go)]
    until(lambda: order == ["first"])
    for name, due in (("due", True), ("ahead", False), ("due later", True), ("ahead later", False)):
        waiting = len(cores._due) + len(cores._ahead)
        threads.append(worker(cores, name, due, order, go))
        until(lambda before=waiting: len(cores._due) + len(cores._ahead) == before + 1)  # type: ignore[misc]
        now += PATIENCE_SECONDS / 3
    now += PATIENCE_SECONDS / 3  # that of the first one ahead is over, and the other's is not
    go.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "ahead", "due", "due later", "ahead later"]


def test_as_many_at_a_time_as_there_are_cores() -> None:
    cores, inside, most = Cores(3), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with cores.one(True):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= 3 and inside == 0 and cores._free == 3 and not cores._due
