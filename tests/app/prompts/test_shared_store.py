"""What several processes keep together: the rules of one process's store, in files that both of two stores see."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.audio.notices import Notice
from app.engine.requests import ReadPrompt
from app.errors import PromptNotFound
from app.metrics import Metrics
from app.prompts import files
from app.prompts.shared_store import Entry, SharedPromptStore
from app.prompts.store import Kept, Kind
from app.shared import Shared, forget_halves
from model.checkpoint import Bundle
from model.codec.config import DECODERS
from model.inference.backend import backend_for
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.saved_state import put_together
from model.inference.types import RowSnapshot

MIB = 2**20
FILE = 4096  # a header, a pause


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def kept(mib: float = 1.0) -> Kept:
    """One that takes so much, and a header on top."""
    few = np.zeros(1, np.float32)
    samples = np.zeros(round(mib * MIB) // 4 - 1, np.float32)
    return Kept([ReadPrompt(RowSnapshot(None, few, 0, 8, 0), few, few)], samples)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[[int], SharedPromptStore]:
    (tmp_path / "prompts").mkdir()
    return lambda index: SharedPromptStore(Shared(tmp_path, index, 2), 4 * MIB + 8 * FILE, 60.0, Metrics(), clock)


@pytest.fixture
def stores(make: Callable[[int], SharedPromptStore]) -> tuple[SharedPromptStore, SharedPromptStore]:
    return make(0), make(1)


@pytest.fixture
def one(stores: tuple[SharedPromptStore, SharedPromptStore]) -> SharedPromptStore:
    return stores[0]


@pytest.fixture
def other(stores: tuple[SharedPromptStore, SharedPromptStore]) -> SharedPromptStore:
    return stores[1]


def held(store: SharedPromptStore, kind: Kind = "prompt", owner: str = "alice") -> str:
    """Which of a to f are there; looking is no use."""
    return "".join(name for name in "abcdef" if any(found.kind == kind for found in store._of(owner, name)))


def same(left: Any, right: Any) -> bool:
    """Of one kind, and equal to the bit, through all that states are made of."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and same(left.numpy(), right.numpy())
    if isinstance(left, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "__dict__"):
        return all(same(value, getattr(right, name)) for name, value in vars(left).items())
    return bool(left == right)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
def test_a_state_comes_back_as_it_was(bundle: Bundle, speech_like: Tensor, tmp_path: Path, compiled: bool) -> None:
    """A prompt that was read and a row's end, of either backend, with all that is told beside them; and they go on with
    the same frames.
    """
    slots: Any = backend_for(bundle, 2)
    if not compiled:
        from model.inference.torch_backend import TorchBackend

        slots = TorchBackend(bundle, 2)
    read = prefill(bundle, speech_like[:32_000])
    slots.join(0, read, SamplingOptions(seed=3))
    for _ in range(5):
        slots.step([0])
    end = slots.snapshot(0)
    wanted = [slots.step([0]) for _ in range(5)]
    few = np.arange(3, dtype=np.float32)
    whole = Kept(
        [ReadPrompt(read, few, few), ReadPrompt(end, few, few)], few, (Notice("a", "b"), Notice("c", "d")), "m", "i"
    )
    files.write(tmp_path / "a", whole, 5.0)
    again = files.read(tmp_path / "a", torch.device("cpu"))
    assert (tmp_path / "a").stat().st_mtime == 5.0
    assert same(again.ends, whole.ends) and same(again.samples, whole.samples)
    assert (again.warnings, again.model, again.identity) == (whole.warnings, "m", "i")
    slots.join(1, again.ends[1].state, SamplingOptions(seed=3))
    for frame in wanted:
        assert same(slots.step([1]), frame)
    slots.join(1, again.ends[0].state, SamplingOptions(seed=3))
    slots.join(0, read, SamplingOptions(seed=3))
    left, right = slots.step([0]), slots.step([1])
    assert same(left, right)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_the_state_of_every_kind_of_decoder(make_codec: Any, decoder: str, tmp_path: Path) -> None:
    from model.codec.streaming import StreamingDecoder

    codec = make_codec(decoder=decoder)
    streaming = StreamingDecoder(codec)
    _, state = streaming.step(torch.zeros(1, codec.config.codebooks, 4, dtype=torch.int64), streaming.start(1))
    few = np.zeros(1, np.float32)
    files.write(tmp_path / "a", Kept([ReadPrompt(state, few, few)], few), 0.0)  # type: ignore[arg-type]
    again = files.read(tmp_path / "a", torch.device("cpu")).ends[0].state
    assert same(again, state) and state.tensors


def test_every_kind_of_array_comes_back(tmp_path: Path) -> None:
    """Numbers that numpy has no name for, single ones and none, those that lie in another order."""
    few = np.zeros(1, np.float32)
    parts: Any = (
        torch.tensor([1.5, float("nan")], dtype=torch.bfloat16), torch.tensor(2.5), torch.zeros(0, 3),
        torch.arange(6).view(2, 3).t(), [np.full((), 3, np.int64), np.zeros((2, 0), np.uint16)],
        np.arange(6, dtype=np.uint16).reshape(2, 3).T, 7, None, True, "text", 0.1,
    )  # fmt: skip
    files.write(tmp_path / "a", Kept([ReadPrompt(parts, few, few)], few), 0.0)
    again: Any = files.read(tmp_path / "a", torch.device("cpu")).ends[0].state
    assert same(again[0].view(torch.int16), parts[0].view(torch.int16)) and again[0].dtype == torch.bfloat16
    assert same(again[1:], parts[1:])


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "model.files:put_json", "model.files:nothing",
                                  "model.codec.codec:Codec"])  # fmt: skip
def test_a_file_makes_nothing_but_states(name: str) -> None:
    with pytest.raises(ValueError, match="no state"):
        put_together({"record": {"path": "a"}, "of": name}, [], torch.device("cpu"))


def test_each_finds_what_the_other_keeps(one: SharedPromptStore, other: SharedPromptStore) -> None:
    first, second = kept(), kept(0.5)
    assert one.keep("prompt", "alice", "a", first) and other.keep("prompt", "bob", "a", second)
    for store in (one, other):
        assert same(store.use("prompt", "alice", "a").samples, first.samples)
        assert same(store.use("prompt", "bob", "a").samples, second.samples)
        for wrong in (("prompt", "alice", "b"), ("prompt", "", "a"), ("continuation", "bob", "a")):
            with pytest.raises(PromptNotFound):
                store.use(*wrong)
    other.drop("alice", "a")
    for store in (one, other):
        with pytest.raises(PromptNotFound):
            store.use("prompt", "alice", "a")
        with pytest.raises(PromptNotFound):
            store.drop("alice", "a")
    assert held(one, owner="bob") == "a"


def test_nothing_in_the_folder_tells_an_id(one: SharedPromptStore, tmp_path: Path) -> None:
    """Nor can one name a file elsewhere."""
    one.keep("prompt", "alice", "prompt-secret", kept(), "10.0.0.1")
    one.keep("continuation", "../..", "../../etc/passwd", kept())
    names = [path.name for path in (tmp_path / "prompts").iterdir()]
    assert len(names) == 2
    assert not any(word in name for name in names for word in ("secret", "alice", "10.0", "etc"))
    assert one.use("continuation", "../..", "../../etc/passwd")


def test_a_use_puts_the_end_off(one: SharedPromptStore, other: SharedPromptStore, clock: Clock) -> None:
    one.keep("prompt", "alice", "a", kept())
    one.keep("prompt", "alice", "b", kept())
    clock.now += 40
    found = other.use("prompt", "alice", "a")
    assert other.left_seconds(found) == 60
    clock.now += 20
    one.drop_old()
    assert held(one) == "a"
    clock.now += 39
    assert one.use("prompt", "alice", "a")
    clock.now += 60
    with pytest.raises(PromptNotFound):
        other.use("prompt", "alice", "a")
    other.drop_old()
    assert held(one) == ""


def keeps(store: SharedPromptStore, clock: Clock, kind: Kind, name: str, *more: Any, mib: float = 1.0,
          owner: str = "alice") -> None:  # fmt: skip
    """A moment after what was kept before."""
    clock.now += 1
    store.keep(kind, owner, name, kept(mib), *more)


def test_room_is_that_of_all(one: SharedPromptStore, other: SharedPromptStore, clock: Clock) -> None:
    """And goes by last use, wherever that was."""
    for store, name in zip((one, other) * 2, "abcd", strict=True):
        keeps(store, clock, "prompt", name)
    clock.now += 1
    other.use("prompt", "alice", "a")
    keeps(one, clock, "prompt", "e")
    assert held(other) == "acde"
    keeps(other, clock, "prompt", "f", mib=2.5)
    assert held(one) == "ef"


def test_continuations_go_before_prompts(one: SharedPromptStore, other: SharedPromptStore, clock: Clock) -> None:
    keeps(one, clock, "prompt", "a")
    for name in "bcdef":
        keeps(other, clock, "continuation", name)
    assert held(one) == "a" and held(one, "continuation") == "def"
    keeps(one, clock, "prompt", "b", mib=3.0)
    assert held(other) == "ab" and held(other, "continuation") == ""


def test_what_comes_never_goes_for_itself(one: SharedPromptStore, clock: Clock) -> None:
    for name in "abcd":
        keeps(one, clock, "prompt", name)
    keeps(one, clock, "continuation", "e")
    assert held(one) == "bcd" and held(one, "continuation") == "e"
    keeps(one, clock, "continuation", "a", mib=4.0)
    assert held(one) == "" and held(one, "continuation") == "a"


def test_who_holds_most_gives_way(one: SharedPromptStore, other: SharedPromptStore, clock: Clock) -> None:
    keeps(one, clock, "prompt", "a", owner="bob")
    keeps(other, clock, "continuation", "b", owner="bob")
    for name in "abcdef" * 3:
        keeps(one, clock, "continuation", name, mib=0.5)
        keeps(other, clock, "prompt", name)
    assert held(one, owner="bob") == "a" and held(one, "continuation", owner="bob") == "b"
    keeps(one, clock, "prompt", "c", "10.0.0.1", owner="")
    assert held(one, owner="") == "c" and held(one, owner="bob") == "a"


def test_what_is_too_large_is_not_kept_and_costs_nobody(one: SharedPromptStore, tmp_path: Path) -> None:
    one.keep("prompt", "alice", "a", kept())
    assert not one.keep("prompt", "alice", "b", kept(4.5))
    assert held(one) == "a"
    assert not SharedPromptStore(Shared(tmp_path, 0, 2), 0, 60.0, Metrics()).keep("prompt", "alice", "a", kept())


def test_an_id_again_takes_the_place_of_the_first(one: SharedPromptStore, other: SharedPromptStore) -> None:
    one.keep("continuation", "alice", "a", kept(3.0))
    other.keep("continuation", "alice", "a", second := kept(2.0), "elsewhere")
    assert same(one.use("continuation", "alice", "a").samples, second.samples)
    assert len(one._entries()) == 1


def test_what_a_model_made_goes_with_it(one: SharedPromptStore, other: SharedPromptStore) -> None:
    for name, model in (("a", "first"), ("b", "second")):
        entry = kept()
        entry.model = model
        one.keep("prompt", "alice", name, entry)
    other.drop_of("first")
    assert held(one) == "b"


def test_a_full_disk_keeps_nothing_and_breaks_nothing(
    one: SharedPromptStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, *given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    assert not one.keep("prompt", "alice", "a", kept())
    assert "No space left" in caplog.text and not list((tmp_path / "prompts").iterdir())


def test_a_folder_that_is_gone_breaks_nothing(one: SharedPromptStore, tmp_path: Path) -> None:
    (tmp_path / "prompts").rmdir()
    assert not one.keep("prompt", "alice", "a", kept())
    one.drop_old()
    with pytest.raises(PromptNotFound):
        one.use("prompt", "alice", "a")


def test_halves_that_a_kill_leaves_are_nothing(one: SharedPromptStore, tmp_path: Path) -> None:
    """Neither found nor counted, and gone with their process's end; those of others stay."""
    for pid in (123, 124):
        (tmp_path / "prompts" / f".prompt.a.b.c.kept.{pid}.part").write_bytes(bytes(MIB))
    assert one._entries() == []
    forget_halves(tmp_path / "prompts", 123)
    assert [path.name for path in (tmp_path / "prompts").iterdir()] == [".prompt.a.b.c.kept.124.part"]


def test_metrics_tell_how_much_all_keep(one: SharedPromptStore, other: SharedPromptStore) -> None:
    def value(name: str, **labels: Any) -> float:
        found = other._metrics.registry.get_sample_value(f"whispergpt_{name}", labels)
        assert found is not None
        return found

    one.keep("prompt", "", "a", kept())
    other.keep("continuation", "", "b", kept(2.0))
    assert value("prompts_kept", kind="prompt") == value("prompts_kept", kind="continuation") == 1
    assert 3 * MIB <= value("prompts_kept_bytes") <= 3 * MIB + 2 * FILE
    one.drop("", "b")
    other.drop_old()
    assert value("prompts_kept", kind="continuation") == 0


def test_many_at_a_time(one: SharedPromptStore, other: SharedPromptStore) -> None:
    """Two processes that keep and find at the same moments: nothing fails, what is found is whole, the bound holds."""
    wrong: list[str] = []

    def work(store: SharedPromptStore, owner: str) -> None:
        for number in range(40):
            store.keep("continuation", owner, str(number % 7), kept(0.5), owner)
            for whose in ("alice", "bob"):
                try:
                    found = store.use("continuation", whose, str(number % 7))
                except PromptNotFound:
                    continue
                if len(found.samples) != MIB // 8 - 1:
                    wrong.append(f"{whose} {number}")

    threads = [threading.Thread(target=work, args=given) for given in ((one, "alice"), (other, "bob"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    entries: list[Entry] = one._entries()
    assert entries and sum(entry.nbytes for entry in entries) <= one.most_bytes
