"""What is kept is bounded in bytes and in time, and belongs to its owner."""

from typing import Any

import numpy as np
import pytest

from app.engine.requests import ReadPrompt
from app.errors import PromptNotFound
from app.metrics import Metrics
from app.prompts.store import Kept, Kind, PromptStore
from model.inference.types import RowSnapshot

MIB = 2**20


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def kept(mib: float = 1.0) -> Kept:
    """One that takes so much, but for a few bytes."""
    few = np.zeros(1, np.float32)
    return Kept([ReadPrompt(RowSnapshot(None, few, 0, 8, round(mib * MIB) - 8), few, few)], np.zeros(0, np.float32))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> PromptStore:
    return PromptStore(4 * MIB, 60.0, Metrics(), clock)


def held(store: PromptStore, kind: Kind = "prompt", owner: str = "alice") -> str:
    """Which of a to f are there; looking is no use."""
    return "".join(name for name in "abcdef" if (owner, name) in store._kept[kind])


def test_each_owner_has_ids_of_its_own(store: PromptStore) -> None:
    first, second = kept(), kept()
    assert store.keep("prompt", "alice", "a", first) and store.keep("prompt", "bob", "a", second)
    assert store.use("prompt", "alice", "a") is first
    assert store.use("prompt", "bob", "a") is second
    store.drop("alice", "a")
    assert store.use("prompt", "bob", "a") is second
    for wrong in (("prompt", "alice", "a"), ("prompt", "", "a"), ("continuation", "bob", "a")):
        with pytest.raises(PromptNotFound):
            store.use(*wrong)
    with pytest.raises(PromptNotFound):
        store.drop("alice", "a")


def test_a_use_puts_the_end_off(store: PromptStore, clock: Clock) -> None:
    store.keep("prompt", "alice", "a", one := kept())
    store.keep("prompt", "alice", "b", kept())
    clock.now += 40
    assert store.left_seconds(one) == 20
    store.use("prompt", "alice", "a")
    clock.now += 20
    store.drop_old()
    assert held(store) == "a" and store.held_bytes == MIB
    clock.now += 39
    assert store.use("prompt", "alice", "a") is one
    clock.now += 60
    with pytest.raises(PromptNotFound):
        store.use("prompt", "alice", "a")
    assert store.held_bytes == 0


def test_the_one_unused_for_longest_goes_first(store: PromptStore) -> None:
    for name in "abcd":
        store.keep("prompt", "alice", name, kept())
    store.use("prompt", "alice", "a")
    store.keep("prompt", "alice", "e", kept())
    assert held(store) == "acde"
    store.keep("prompt", "alice", "f", kept(2.5))
    assert held(store) == "ef" and store.held_bytes == 3.5 * MIB


def test_continuations_go_before_prompts(store: PromptStore) -> None:
    store.keep("prompt", "alice", "a", kept())
    for name in "bcdef":
        store.keep("continuation", "alice", name, kept())
    assert held(store) == "a" and held(store, "continuation") == "def"
    store.keep("prompt", "alice", "b", kept(3.0))
    assert held(store) == "ab" and held(store, "continuation") == ""


def test_what_comes_never_goes_for_itself(store: PromptStore) -> None:
    """Or behind prompts that fill the store no continuation could be gone on from."""
    for name in "abcd":
        store.keep("prompt", "alice", name, kept())
    store.keep("continuation", "alice", "e", kept())
    assert held(store) == "bcd" and held(store, "continuation") == "e"
    store.keep("continuation", "alice", "f", kept())
    assert held(store) == "bcd" and held(store, "continuation") == "f"
    store.keep("continuation", "alice", "a", kept(4.0))
    assert held(store) == "" and held(store, "continuation") == "a" and store.held_bytes == 4 * MIB


def test_who_holds_most_gives_way(store: PromptStore) -> None:
    """One client, however busy, takes nothing of what another holds within its even share."""
    store.keep("prompt", "bob", "a", kept())
    store.keep("continuation", "bob", "b", kept())
    for name in "abcdef" * 20:
        store.keep("continuation", "alice", name, kept(0.5))
        store.keep("prompt", "alice", name, kept())
    assert held(store, owner="bob") == "a" and held(store, "continuation", owner="bob") == "b"
    assert store.held_bytes <= 4 * MIB
    store.keep("prompt", "carol", "a", kept(2.0))  # a third of the room would be less: she holds most herself
    assert held(store, owner="carol") == "a", "what comes never goes for itself"
    assert held(store, owner="bob") == "a", "and of those that hold as much, only as much goes as is needed"


def test_shares_without_keys_are_clients(store: PromptStore) -> None:
    """All ids are everyone's there, and the room is not."""
    store.keep("prompt", "", "a", kept(), "10.0.0.1")
    for name in "bcdef":
        store.keep("prompt", "", name, kept(), "10.0.0.2")
    assert held(store, owner="") == "adef"
    store.drop("", "a")
    store.keep("prompt", "", "b", kept(), "10.0.0.2")
    assert held(store, owner="") == "bdef", "there is no more room kept for a client that has nothing"


def test_what_is_too_large_is_not_kept_and_costs_nobody(store: PromptStore) -> None:
    store.keep("prompt", "alice", "a", kept())
    assert not store.keep("prompt", "alice", "b", kept(4.5))
    assert held(store) == "a"
    assert not PromptStore(0, 60.0, Metrics()).keep("prompt", "alice", "a", kept())


def test_an_id_again_takes_the_place_of_the_first(store: PromptStore) -> None:
    store.keep("continuation", "alice", "a", kept(3.0))
    store.keep("continuation", "alice", "a", second := kept(2.0))
    assert store.use("continuation", "alice", "a") is second
    assert store.held_bytes == 2 * MIB


def test_metrics_tell_how_much_is_kept() -> None:
    metrics = Metrics()
    store = PromptStore(4 * MIB, 60.0, metrics)

    def value(name: str, **labels: Any) -> float | None:
        return metrics.registry.get_sample_value(f"whispergpt_{name}", labels)

    store.keep("prompt", "", "a", kept())
    store.keep("continuation", "", "b", kept(2.0))
    assert value("prompts_kept", kind="prompt") == value("prompts_kept", kind="continuation") == 1
    assert value("prompts_kept_bytes") == 3 * MIB
    store.drop("", "b")
    assert value("prompts_kept", kind="continuation") == 0 and value("prompts_kept_bytes") == MIB
