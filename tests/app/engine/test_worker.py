"""The step loop under the real engine: streams equal wholes, rows join and leave, failures stay where they belong."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import model.inference.prefill
from app.engine import engine as engine_module
from app.engine.requests import AudioChunk, ContinueRequest, GenerationResult, NotFinite, PrefillDone
from app.engine.scheduler import PLAYBACK_LEAD_SECONDS
from app.engine.sequence import FIRST_CHUNK_FRAMES, LONGEST_CHUNK_FRAMES
from app.engine.worker import DecodeWorkers
from app.errors import DeadlinePassed
from model.codec.streaming import StreamingDecoder
from model.inference.backend import Backend, backend_for
from model.inference.sampling import SamplingOptions
from model.inference.scoring import PromptEncoder
from model.inference.torch_backend import TorchBackend
from model.inference.types import Frames
from tests.support.engine import until

KINDS: list[dict[str, Any]] = [
    {"temperature": 1.0}, {"temperature": 0.0}, {"top_k": 30}, {"top_p": 0.9}, {"temperature": 0.7, "top_p": 0.8},
]  # fmt: skip


def job(
    speech: Any, seed: int = 1, frames: int = 60, n: int = 1, seconds: float = 60, **options: Any
) -> ContinueRequest:
    now = time.monotonic()
    return ContinueRequest(now, now + seconds, speech, frames, SamplingOptions(seed=seed, **options), n)


async def collect(engine: Any, work: ContinueRequest) -> list[Any]:
    return [event async for event in engine.stream(work)]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_put_together_is_the_whole(service: Any, speech: Any, n: int) -> None:
    engine = service.app.state.engine
    whole = service.wait(engine.submit(job(speech, n=n)))
    first, *pieces, last = service.wait(collect(engine, job(speech, n=n)))
    assert isinstance(first, PrefillDone) and isinstance(last, GenerationResult)
    np.testing.assert_array_equal(first.prompt_logprobs, whole.prompt_logprobs)
    np.testing.assert_array_equal(first.tail, whole.tail)
    assert all(isinstance(piece, AudioChunk) for piece in pieces)
    for choice in range(n):
        mine = [piece for piece in pieces if piece.choice == choice]
        assert [piece.first for piece in mine] == np.cumsum([0] + [len(piece.tokens) for piece in mine[:-1]]).tolist()
        lengths = [len(piece.tokens) for piece in mine]
        assert lengths[0] == FIRST_CHUNK_FRAMES and max(lengths) == LONGEST_CHUNK_FRAMES
        for name in ("tokens", "logprobs", "samples"):
            joined = np.concatenate([getattr(piece, name) for piece in mine])
            np.testing.assert_array_equal(joined, getattr(whole, name)[choice])
        np.testing.assert_array_equal(last.tokens[choice], whole.tokens[choice])
        assert len(last.samples[choice]) == 0
    assert last.finish_reasons == ["length"] * n
    assert last.generated_seconds == n * 60 / 75


def test_forty_at_once_are_as_alone(serve: Any, speech: Any) -> None:
    """More than there are slots, of several lengths and options, some of them leaving midway."""
    service = serve(queue=100)
    engine = service.app.state.engine

    def work(index: int) -> ContinueRequest:
        part = speech[: 9_600 + 320 * 7 * (index % 5)]
        return job(part, index, 20 + 5 * (index % 4), 1 + index % 2, **KINDS[index % 5])

    alone = [service.wait(engine.submit(work(index))) for index in range(40)]

    async def together() -> list[Any]:
        tasks = [asyncio.ensure_future(engine.submit(work(index))) for index in range(40)]
        leaving = [asyncio.ensure_future(engine.submit(job(speech, 100 + index, 400))) for index in range(8)]
        for task in leaving:
            await asyncio.sleep(0.03)
            task.cancel()
        made = await asyncio.gather(*tasks)
        await asyncio.gather(*leaving, return_exceptions=True)
        return made

    for one, other in zip(service.wait(together()), alone, strict=True):
        for name in ("tokens", "logprobs", "samples"):
            for mine, its in zip(getattr(one, name), getattr(other, name), strict=True):
                np.testing.assert_array_equal(mine, its)
    until(lambda: service.value("slots_used") == 0)
    assert service.value("requests_running") == 0


VARIETY = 24


class Turns:
    """Lets no worker look for work more than once while another has not, as long as some waits."""

    def __init__(self, workers: int) -> None:
        self._looks, self._changed = [0] * workers, threading.Condition()
        self._workers: DecodeWorkers | None = None

    def looked(self, index: int, workers: DecodeWorkers) -> None:
        with self._changed:
            self._workers = workers
            self._looks[index] += 1
            self._changed.notify_all()

    def _may(self, index: int) -> bool:
        if self._workers is None or not self._workers._waiting:
            self._looks = [max(self._looks)] * len(self._looks)  # those that had nothing to do are not behind
        return min(self._looks) >= self._looks[index] - 1

    def wait(self, index: int) -> None:
        """Until the others have looked as often."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._may(index), 60)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_thousand_requests_in_random_company_are_as_alone(
    serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Through the whole engine: prompts are read beside others, streams and wholes, some of which leave midway.

    In waves of more rows than there are slots. No step is made before nine tenths of a wave's prompts have been read:
    the tiny model steps so much faster than prompts are read that rows would seldom meet otherwise. And no worker steps
    while another, which got no processor time, has not looked whether there is work: rows are shared out evenly, so
    that where one stands still the other has few, and they would meet as the machine's load pleased.
    """
    monkeypatch.setattr(engine_module, "workers_for", lambda bundle, threads: workers)
    gate = threading.Event()
    gate.set()
    turns = Turns(workers)
    numbers = iter(range(workers))

    def gated(*given: Any) -> Backend:
        slots = backend_for(*given)
        step, index = slots.step, next(numbers)

        def wait_and_step(active: Sequence[int]) -> Frames:
            assert gate.wait(60)
            turns.wait(index)
            return step(active)

        monkeypatch.setattr(slots, "step", wait_and_step)
        return slots

    look = DecodeWorkers._next_sequences

    def counted(self: DecodeWorkers, index: int, pause: float) -> Any:
        found = look(self, index, pause)
        turns.looked(index, self)
        return found

    monkeypatch.setattr(DecodeWorkers, "_next_sequences", counted)
    monkeypatch.setattr(engine_module, "backend_for", gated)
    service = serve(queue=100, slots=12)
    engine = service.app.state.engine
    rng = np.random.default_rng(workers)

    def work(kind: int, frames: int = 0) -> ContinueRequest:
        part = speech[320 * kind : 320 * kind + 9_600 + 320 * 5 * (kind % 7)]
        return job(part, kind, frames or 60 + 20 * (kind % 8), 1 + kind % 4, seconds=300, **KINDS[kind % 5])

    alone = [service.wait(engine.submit(work(kind))) for kind in range(VARIETY)]
    compared = left = 0

    async def visit(kind: int, streamed: bool) -> None:
        nonlocal compared
        if streamed:
            first, *pieces, last = await collect(engine, work(kind))
            np.testing.assert_array_equal(first.prompt_logprobs, alone[kind].prompt_logprobs)
            np.testing.assert_array_equal(first.tail, alone[kind].tail)
            got = {
                name: [
                    np.concatenate([getattr(piece, name) for piece in pieces if piece.choice == choice])
                    for choice in range(len(last.tokens))
                ]
                for name in ("tokens", "logprobs", "samples")
            }
        else:
            whole = await engine.submit(work(kind))
            np.testing.assert_array_equal(whole.prompt_logprobs, alone[kind].prompt_logprobs)
            got = {name: getattr(whole, name) for name in ("tokens", "logprobs", "samples")}
        for name, mine in got.items():
            for one, other in zip(mine, getattr(alone[kind], name), strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"{name} of {kind}")
        compared += 1

    async def leave(kind: int, opened: asyncio.Event, after: float) -> None:
        nonlocal left
        task = asyncio.ensure_future(engine.submit(work(kind, 2_000)))
        await opened.wait()
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
        left += task.cancelled()

    async def wave(moves: list[tuple[int, float]]) -> None:
        most = service.value("prefill_seconds_count") + 0.9 * len(moves)
        opened = asyncio.Event()
        gate.clear()
        visitors = [
            asyncio.ensure_future(leave(kind, opened, chance / 3) if chance < 0.1 else visit(kind, chance < 0.55))
            for kind, chance in moves
        ]
        await asyncio.to_thread(until, lambda: service.value("prefill_seconds_count") >= most)
        gate.set()
        opened.set()
        await asyncio.gather(*visitors)

    async def together() -> None:
        for _ in range(20):
            await wave([(int(rng.integers(VARIETY)), float(rng.random())) for _ in range(56)])

    service.wait(together(), 300)
    assert compared >= 980 and left > 50 and compared + left == 1_120
    until(lambda: service.value("slots_used") == 0)
    until(lambda: service.value("requests_running") == 0)
    assert service.value("batch_size_sum") > 2 * service.value("batch_size_count"), "they did meet"


def test_who_leaves_is_gone_after_the_step_in_hand(serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in steps: one may be under way at the moment of leaving, and none is begun after it."""
    begun: list[tuple[float, tuple[int, ...]]] = []

    class Counting(TorchBackend):
        def step(self, active: Sequence[int]) -> Frames:
            begun.append((time.monotonic(), tuple(active)))
            return super().step(active)

    monkeypatch.setattr(engine_module, "backend_for", lambda bundle, rows, codebooks: Counting(bundle, rows, codebooks))
    service = serve(threads=1, slots=4)
    engine = service.app.state.engine
    stays = asyncio.run_coroutine_threadsafe(engine.submit(job(speech, frames=100_000)), service.loop)
    until(lambda: service.value("slots_used") == 1)

    def steps_after(moment: float) -> Callable[[], bool]:
        return lambda: sum(one > moment for one, _ in begun) > 3

    for streamed in (False, True):
        leaves = job(speech, 2, 100_000)
        run = collect(engine, leaves) if streamed else engine.submit(leaves)
        task = asyncio.run_coroutine_threadsafe(run, service.loop)
        until(lambda: service.value("slots_used") == 2)
        until(lambda: len(begun[-1][1]) == 2)
        task.cancel()
        until(leaves.cancelled.is_set)
        gone = time.monotonic()
        until(steps_after(gone))
        assert [len(active) for at, active in begun if at > gone][1:4] == [1, 1, 1]
        assert service.value("slots_used") == 1
    stays.cancel()
    until(lambda: service.value("slots_used") == 0)


def test_two_workers_share_the_work(serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "workers_for", lambda bundle, threads: 2)
    service = serve(slots=4)
    engine = service.app.state.engine
    assert engine.workers.total == 4 and len(engine.workers.threads) == 2

    async def some() -> list[Any]:
        return await asyncio.gather(*(engine.submit(job(speech, seed, n=2)) for seed in range(6)))

    together = service.wait(some())
    for seed, made in enumerate(together):
        again = service.wait(engine.submit(job(speech, seed, n=2)))
        for name in ("tokens", "logprobs", "samples"):
            for mine, its in zip(getattr(made, name), getattr(again, name), strict=True):
                np.testing.assert_array_equal(mine, its)


def test_time_up_returns_what_is_ready(serve: Any, speech: Any) -> None:
    service = serve()
    engine = service.app.state.engine
    made = service.wait(engine.submit(job(speech, frames=100_000, n=2, seconds=0.7)))
    assert made.finish_reason == "timeout" and made.finish_reasons == ["timeout", "timeout"]
    for tokens, samples in zip(made.tokens, made.samples, strict=True):
        assert 0 < len(tokens) < 100_000
        assert len(samples) == 320 * len(tokens)
    *_, last = service.wait(collect(engine, job(speech, frames=100_000, seconds=0.7)))
    assert last.finish_reason == "timeout"


def test_time_up_while_waiting_for_a_slot(serve: Any, speech: Any) -> None:
    service = serve(slots=1)
    engine = service.app.state.engine
    long = asyncio.run_coroutine_threadsafe(engine.submit(job(speech, frames=100_000)), service.loop)
    until(lambda: service.value("slots_used") == 1)
    with pytest.raises(DeadlinePassed):
        service.wait(engine.submit(job(speech, seconds=0.3)))
    long.cancel()
    until(lambda: service.value("slots_used") == 0)
    assert len(service.wait(engine.submit(job(speech))).tokens[0]) == 60


def test_leaving_while_waiting_for_a_slot(serve: Any, speech: Any) -> None:
    service = serve(slots=1)
    engine = service.app.state.engine
    long = asyncio.run_coroutine_threadsafe(engine.submit(job(speech, frames=100_000)), service.loop)
    until(lambda: service.value("slots_used") == 1)
    waits = job(speech)
    waiting = asyncio.run_coroutine_threadsafe(engine.submit(waits), service.loop)
    until(lambda: waits.stage == "slot")
    waiting.cancel()
    until(lambda: not engine.workers._waiting)
    until(lambda: waits.samples is None)  # by the event loop, which the worker does not wait for
    long.cancel()
    until(lambda: service.value("slots_used") == 0)


class Breaking(TorchBackend):
    """Slots whose step goes wrong for what has seed 13."""

    wrong = "raise"

    def step(self, active: Sequence[int]) -> Frames:
        made = super().step(active)
        for at, row in enumerate(active):
            if self._options[row].seed == 13:
                if self.wrong == "raise":
                    raise ZeroDivisionError
                made.samples[at] = np.nan
        return made


class Leaking(TorchBackend):
    """Slots in which company changes the samples by a bit."""

    def step(self, active: Sequence[int]) -> Frames:
        made = super().step(active)
        if len(active) > 1:
            made.samples[:] = np.nextafter(made.samples, np.float32(1))
        return made


def test_the_start_asks_whether_rows_are_apart(service: Any) -> None:
    assert service.value("batch_invariant") == 1
    assert service.get("/v1/models").json()["data"][0]["batch_invariant"] is True


def test_rows_that_are_not_apart_are_told_of_and_served(
    serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "backend_for", lambda bundle, rows, codebooks: Leaking(bundle, rows, codebooks))
    service = serve(slots=4)
    assert service.value("batch_invariant") == 0
    assert service.get("/v1/models").json()["data"][0]["batch_invariant"] is False
    assert "may depend on the requests beside it" in caplog.text
    assert service.post("/continue", clip, data={"seconds": "0.2"}).status_code == 200


def test_a_step_that_fails_at_the_start_fails_the_start(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchBackend, "step", lambda *given: 1 / 0)
    monkeypatch.setattr(
        engine_module, "backend_for", lambda bundle, rows, codebooks: TorchBackend(bundle, rows, codebooks)
    )
    with pytest.raises(ZeroDivisionError):
        serve()


@pytest.mark.parametrize("wrong", ["raise", "nan"])
def test_a_failing_step_fails_its_rows_and_no_later_ones(
    serve: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def make(bundle: Any, rows: int, codebooks: int | None) -> Backend:
        slots = Breaking(bundle, rows, codebooks)
        slots.wrong = wrong
        return slots

    monkeypatch.setattr(engine_module, "backend_for", make)
    service = serve(threads=1)
    engine = service.app.state.engine
    neighbour = asyncio.run_coroutine_threadsafe(engine.submit(job(speech, frames=300)), service.loop)
    until(lambda: service.value("slots_used") == 1)
    with pytest.raises(ZeroDivisionError if wrong == "raise" else NotFinite):
        service.wait(engine.submit(job(speech, 13, n=2)))
    if wrong == "nan":  # its neighbour does not notice
        assert len(neighbour.result(30).tokens[0]) == 300
        assert service.value("nonfinite_logits_total") == 1
    else:
        with pytest.raises(ZeroDivisionError):
            neighbour.result(30)
    assert engine.healthy
    assert len(service.wait(engine.submit(job(speech))).tokens[0]) == 60
    until(lambda: service.value("slots_used") == 0)


def test_a_long_prompt_does_not_hold_up_the_others(serve: Any, speech: Any) -> None:
    """Frames are made while 50 s are read."""
    service = serve(threads=1)
    engine = service.app.state.engine
    stepping = asyncio.run_coroutine_threadsafe(engine.submit(job(speech, frames=100_000)), service.loop)
    until(lambda: service.value("slots_used") == 1)
    long = job(np.tile(speech, 40), frames=1)
    reading = asyncio.run_coroutine_threadsafe(engine.submit(long), service.loop)
    until(lambda: long.stage == "prefill")
    before = service.value("step_seconds_count")
    reading.result(30)
    assert service.value("step_seconds_count") > before + 10
    stepping.cancel()
    until(lambda: service.value("slots_used") == 0)


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """What prompts leave in memory, while Python's collector of circles does not run."""
    seen: list[weakref.ref[Any]] = []

    class Seen(PromptEncoder):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            seen.extend([weakref.ref(self), weakref.ref(self.cache)])  # the cache goes on into the prompt's state

    monkeypatch.setattr(model.inference.prefill, "PromptEncoder", Seen)
    gc.collect()
    gc.disable()
    yield seen
    gc.enable()


@pytest.mark.parametrize("how", ["whole", "stream", "left in its step", "left while it was read", "fails"])
def test_a_prompt_leaves_memory_with_its_answer(
    service: Any, speech: Any, uncollected: list[weakref.ref[Any]], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: of a real model it is 6 MB, and Python's collector comes hundreds of requests later."""
    engine = service.app.state.engine
    if how == "whole":
        service.wait(engine.submit(job(speech, n=3)))
    elif how == "stream":
        service.wait(collect(engine, job(speech)))
    elif how == "fails":
        monkeypatch.setattr(StreamingDecoder, "step", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            service.wait(engine.submit(job(speech)))
    else:
        work = job(speech, frames=100_000) if how == "left in its step" else job(np.tile(speech, 40), frames=1)
        stage = "step" if how == "left in its step" else "prefill"
        running = asyncio.run_coroutine_threadsafe(engine.submit(work), service.loop)
        until(lambda: work.stage == stage and len(uncollected) == 2)
        running.cancel()
    assert len(uncollected) == 2
    until(lambda: not any(one() for one in uncollected))


def test_a_stream_beside_a_prompt_is_paced_and_the_same(service: Any, speech: Any, monkeypatch: Any) -> None:
    """While prompts are read, 1.2 s of audio take 0.7 s at least; nothing of it changes."""
    engine = service.app.state.engine
    service.wait(collect(engine, job(speech, frames=10)))
    plain = service.wait(collect(engine, job(speech, frames=90)))
    monkeypatch.setattr(engine.workers, "_prompts_wait", lambda: True)
    begin = time.monotonic()
    paced = service.wait(collect(engine, job(speech, frames=90)))
    assert 90 / 75 - PLAYBACK_LEAD_SECONDS - 0.1 < time.monotonic() - begin
    for name in ("tokens", "logprobs", "samples"):
        one, other = (np.concatenate([getattr(piece, name) for piece in got[1:-1]]) for got in (plain, paced))
        np.testing.assert_array_equal(one, other)


def test_a_whole_answer_beside_a_prompt_is_not_paced(service: Any, speech: Any, monkeypatch: Any) -> None:
    """Nobody listens to it: however far it is ahead, it goes on."""
    engine = service.app.state.engine
    monkeypatch.setattr(engine.workers, "_prompts_wait", lambda: True)
    made = service.wait(engine.submit(job(speech, frames=600)))
    assert len(made.tokens[0]) == 600
    assert made.loop_seconds < 600 / 75 - PLAYBACK_LEAD_SECONDS, "as fast as its listener would play it, or slower"


def test_reading_is_known_while_it_lasts(service: Any, speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = service.app.state.engine
    seen = []
    work = job(speech, frames=2)
    pool = engine.prefill_pool
    inner = pool.go_on

    def go_on(*given: Any) -> None:
        seen.append(pool.reads_prompts)
        inner(*given)

    monkeypatch.setattr(pool, "go_on", go_on)
    assert not pool.reads_prompts
    service.wait(engine.submit(work))
    assert seen and all(seen) and not pool.reads_prompts
