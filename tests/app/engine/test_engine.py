"""Admission, cancellation and deadlines: nobody's leaving or waiting holds a permit for longer than it must."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from app.engine.requests import Cancelled, ContinueRequest, EngineRequest, PromptRequest
from app.errors import DeadlinePassed, Draining, NotReady
from app.main import drain
from model.inference.sampling import SamplingOptions
from tests.support.decoding import Decoded
from tests.support.engine import Gate, Visitor, busy, in_background, request_that, until
from tests.support.waiting import HANG_SECONDS

LONG: dict[str, Any] = {"seconds": "900", "timeout_seconds": "100"}


def test_full_queue_refuses_before_the_body_is_read(serve: Any, clip: bytes) -> None:
    service = serve(queue=1, threads=1, slots=1)
    engine = service.app.state.engine
    read = 0

    async def body() -> Any:
        nonlocal read
        read += 1
        yield b"x"

    with busy(service):
        waiting = [in_background(service, "/continue", clip, seconds="0.1") for _ in range(2)]
        until(lambda: engine.in_use == 2)
        assert service.value("requests_running") == 2  # the gates, which acquired no permit

        answer = service.post("/continue", content=body(), headers={"content-type": "multipart/form-data; boundary=x"})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "overloaded"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert read == 0
        assert service.value("rejected_total", reason="overloaded") == 1
        assert service.get("/readyz").status_code == 200  # busy is not ill
    assert [one.result(HANG_SECONDS).status_code for one in waiting] == [200, 200]
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200


@pytest.mark.parametrize("path", ["/continue", "/score"])
def test_leaving_while_waiting(serve: Any, clip: bytes, path: str) -> None:
    service = serve(threads=1)
    engine = service.app.state.engine
    with busy(service):
        visitor = Visitor(service, path, clip)
        until(lambda: engine.in_use == 1)
        visitor.leave()
        assert engine.in_use == 0
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200
    stages = ("decode", "queue") if path == "/continue" else ("score",)  # it may still be at its file
    assert sum(service.value("client_disconnects_total", stage=stage) for stage in stages) == 1
    assert service.value("requests_total", route=path, outcome="disconnected") == 1
    assert service.value("queue_seconds_count") == 3  # two gates and the good one: it never got its turn


def test_leaving_while_it_runs(serve: Any, clip: bytes) -> None:
    """A continuation of 900 s ends within a frame or so."""
    service = serve(max_seconds=1000)
    visitor = Visitor(service, "/continue", clip, **LONG)
    until(lambda: service.value("step_seconds_count") > 3)
    visitor.leave()
    assert service.app.state.engine.in_use == 0
    until(lambda: service.value("slots_used") == 0)
    assert service.value("requests_running") == 0
    made = service.value("step_seconds_count")
    time.sleep(0.1)
    assert service.value("step_seconds_count") == made
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200


def test_leaving_in_the_middle_of_the_upload(serve: Any, clip: bytes) -> None:
    service = serve()
    visitor = Visitor(service, "/continue", clip, part=0.5)
    until(lambda: service.app.state.engine.in_use == 1)
    visitor.leave()
    assert service.app.state.engine.in_use == 0
    assert service.value("client_disconnects_total", stage="upload") == 1


def test_leaving_at_any_moment(serve: Any, clip: bytes) -> None:
    """Ten moments, none of which may hold a permit or hurt the next request."""
    service = serve(max_seconds=1000)
    for step in range(10):
        visitor = Visitor(service, "/continue", clip, **LONG)
        time.sleep(0.004 * step)
        visitor.leave()
    assert service.app.state.engine.in_use == 0
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200


def test_time_up_while_waiting(serve: Any, clip: bytes) -> None:
    service = serve(threads=1)
    with busy(service):
        for path in ("/continue", "/score"):
            answer = service.post(path, clip, data={"timeout_seconds": "0.1"})
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "timeout"
    assert service.app.state.engine.in_use == 0
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200
    assert service.value("queue_seconds_count") == 3


def test_servers_limit_is_above_the_clients(serve: Any, clip: bytes) -> None:
    service = serve(timeout_seconds=0.1)
    with busy(service):
        assert service.post("/score", clip, data={"timeout_seconds": "50"}).status_code == 504


def test_requests_side_by_side_are_as_alone(serve: Any, clip: bytes) -> None:
    service = serve()
    fields = {"seconds": "0.2"}
    alone = [service.post("/continue", clip, data=fields | {"seed": str(seed)}).json() for seed in range(4)]
    sent = [in_background(service, "/continue", clip, seed=str(seed), **fields) for seed in range(4)]
    together = [one.result(HANG_SECONDS).json() for one in sent]
    assert [one["choices"] for one in together] == [one["choices"] for one in alone]


def test_event_loop_stays_free_while_it_works(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other routes answer in the middle of a long continuation: no thread but the engine's own reads and steps."""
    service = serve(max_seconds=1000)
    engine, computing = service.app.state.engine, set()

    def watched(call: Any) -> Any:
        def run(*given: Any) -> Any:
            computing.add(threading.current_thread())
            return call(*given)

        return run

    def beyond(steps: float) -> Callable[[], bool]:
        return lambda: bool(service.value("step_seconds_count") > steps)

    monkeypatch.setattr(engine.workers, "_step", watched(engine.workers._step))
    work = {kind: one._replace(run=watched(one.run)) for kind, one in engine.prefill_pool.work.items()}
    monkeypatch.setattr(engine.prefill_pool, "work", work)
    visitor = Visitor(service, "/continue", clip, **LONG)
    until(lambda: service.value("step_seconds_count") > 3)
    for _ in range(20):
        more = beyond(service.value("step_seconds_count"))
        assert service.get("/livez").status_code == 200
        until(more)
    assert not visitor.done.done()
    visitor.leave()
    assert computing and computing <= {*engine.workers.threads, *engine.prefill_pool.threads}


def test_no_thread_waits_for_ever(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come just when the waiting for them ends: a queue that loses count of time would keep a thread."""
    monkeypatch.setattr("app.engine.health.HEARTBEAT_SECONDS", 0.0005)
    engine = serve(threads=4).app.state.engine
    now = time.monotonic()
    for _ in range(20_000):
        nobody = ContinueRequest(now, now + 60, None, 1, SamplingOptions(), 1)
        nobody.cancelled.set()
        engine.prefill_pool.put(nobody)
    monkeypatch.setattr("app.engine.health.STALE_SECONDS", 1.0)
    time.sleep(1.5)
    until(lambda: engine.healthy)


def test_a_stuck_engine_is_not_ready(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat of a thread that hangs grows old; the process still lives."""
    monkeypatch.setattr("app.engine.health.STALE_SECONDS", 0.5)
    monkeypatch.setattr("app.engine.health.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("app.engine.worker.IDLE_SECONDS", 0.02)
    service = serve()
    until(lambda: service.get("/readyz").status_code == 200)
    engine, hang = service.app.state.engine, threading.Event()
    hanging = request_that(engine, lambda request: hang.wait(HANG_SECONDS))
    running = asyncio.run_coroutine_threadsafe(engine.submit(hanging), service.loop)
    until(lambda: service.get("/readyz").status_code == 503)
    assert service.get("/livez").status_code == 200
    with pytest.raises(NotReady):  # who waits is told, and does not hang with it
        running.result(HANG_SECONDS)
    hang.set()
    until(lambda: service.get("/readyz").status_code == 200)


def test_a_request_that_fails_does_not_end_the_engine(serve: Any, clip: bytes) -> None:
    service = serve()
    engine = service.app.state.engine
    with pytest.raises(ZeroDivisionError):
        service.wait(engine.submit(request_that(engine, lambda request: 1 / 0)))
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200


@pytest.mark.parametrize("kept", [False, True], ids=["to be read", "read before"])
def test_a_request_that_cannot_be_queued_is_not_counted_for_ever(
    service: Any, speech: Any, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """And holds nothing: it is cancelled as one whose client has left."""
    engine = service.app.state.engine
    now = time.monotonic()
    read = service.wait(engine.submit(PromptRequest(now, now + 60, speech))) if kept else None
    request = ContinueRequest(now, now + 60, None if kept else speech, 2, SamplingOptions(seed=1), 1, read)

    def full(*given: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(engine.workers if kept else engine.prefill_pool, "put", full)
    with pytest.raises(MemoryError):
        service.wait(engine.submit(request))
    assert service.value("requests_running") == 0
    assert request.ended and request.cancelled.is_set()
    assert request.samples is None and request.read is None


def test_shutdown_lets_running_requests_end(serve: Any, clip: bytes) -> None:
    service = serve()
    engine = service.app.state.engine
    with busy(service):
        inside = in_background(service, "/continue", clip, seconds="0.2")
        until(lambda: engine.in_use == 1)
        drained = asyncio.run_coroutine_threadsafe(drain(engine, 5), service.loop)
        until(lambda: engine.draining)
        assert service.post("/continue", clip).status_code == 503
        assert not drained.done()
    assert inside.result(HANG_SECONDS).status_code == 200
    drained.result(HANG_SECONDS)


def test_the_end_of_a_shutdown_refuses_what_has_made_nothing(serve: Any, clip: bytes) -> None:
    """Clips that are scored, prompts that are read: 503 within a chunk, so that another server may be asked."""
    service = serve()
    engine = service.app.state.engine
    with suppress(Draining), busy(service):  # whose own requests are ended, too
        inside = [in_background(service, path, clip) for path in ("/continue", "/score")]
        queues = engine.prefill_pool.queues
        until(lambda: engine.in_use == 2 and all(not queues[kind].empty() for kind in ("read", "score")))
        engine.end()
        answers = [one.result(HANG_SECONDS) for one in inside]
    assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(503, "draining")] * 2
    assert service.get("/readyz").status_code == 503


def test_the_end_of_a_shutdown_refuses_what_was_read_before(serve: Any, speech: Any) -> None:
    """A prompt that is kept is in no queue of those who read, and waits for no slot any more."""
    service = serve()
    engine = service.app.state.engine
    now = time.monotonic()
    read = service.wait(engine.submit(PromptRequest(now, now + 60, speech)))
    engine.end()
    with pytest.raises(Draining):
        service.wait(engine.submit(ContinueRequest(now, now + 60, None, 75, SamplingOptions(seed=1), 1, read)))


def test_leaving_while_the_file_is_decoded(serve: Any, to_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding stops at the next block, and ends before its file is closed under it."""
    service, decoded = serve(max_score_seconds=80_000), Decoded(monkeypatch)
    hour = to_file(np.zeros(8_000 * 3_600, np.int16), 8_000, "FLAC")
    for step in range(5):
        decoded.seconds = 0.0
        visitor = Visitor(service, "/score", hour)
        until(lambda: service.app.state.engine.in_use == 1)
        time.sleep(0.05 * step)
        visitor.leave()
        assert decoded.seconds < 3_600, "not to the end"
        assert service.app.state.engine.in_use == 0
        assert service.app.state.decoders.borrowed_tokens == 0
    assert service.value("queue_seconds_count") == 0


def test_time_up_while_the_file_is_decoded(serve: Any, to_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service, decoded = serve(max_score_seconds=80_000), Decoded(monkeypatch)
    hour = to_file(np.zeros(8_000 * 3_600, np.int16), 8_000, "FLAC")
    assert service.post("/score", hour, data={"timeout_seconds": "0.2"}).status_code == 504
    assert decoded.seconds < 3_600, "not to the end"
    assert service.value("queue_seconds_count") == 0


def test_clips_that_are_decoded_hold_up_no_prompt(serve: Any, clip: bytes, to_file: Any) -> None:
    """However many hours /score is given: one decoder is left to prompts."""
    service = serve(max_score_seconds=80_000)
    hour = to_file(np.zeros(8_000 * 3_600, np.int16), 8_000, "FLAC")
    visitors = [Visitor(service, "/score", hour) for _ in range(3)]
    until(lambda: service.app.state.decoders.borrowed_tokens > 0)
    time.sleep(0.05)
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200
    assert service.app.state.decoders.borrowed_tokens == 1, "the first clip is still being decoded"
    for visitor in visitors:
        visitor.leave()
    assert service.app.state.decoders.borrowed_tokens == 0


@pytest.mark.parametrize("path", ["/continue", "/score"])
def test_time_up_while_others_are_decoded(serve: Any, clip: bytes, path: str) -> None:
    service = serve()

    async def hold(take: bool) -> None:
        for index in range(2):
            if take:
                await service.app.state.decoders.acquire_on_behalf_of(index)
            else:
                service.app.state.decoders.release_on_behalf_of(index)

    service.wait(hold(True))
    answer = service.wait(
        asyncio.wait_for(service.client.post(path, files={"file": ("a", clip)}, data={"timeout_seconds": "0.2"}), 5)
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    service.wait(hold(False))
    assert service.app.state.decoders.borrowed_tokens == 0
    assert service.post(path, clip).status_code == 200


def test_reading_a_prompt_ends_with_its_client_and_its_time(serve: Any, clip: bytes, speech: Any) -> None:
    """Between chunks of 4 s, on the engine's own thread."""
    engine = serve().app.state.engine
    pool, model = engine.prefill_pool, engine.first
    prompt = np.tile(speech, 30)  # 40 s
    options = SamplingOptions(seed=1)
    now = time.monotonic()
    late = ContinueRequest(now, now + 0.001, prompt, 75, options, 1, model=model)
    with pytest.raises(DeadlinePassed):
        pool.read_prompt(late)
    left = ContinueRequest(now, now + 60, prompt, 75, options, 1, model=model)
    left.cancelled.set()
    with pytest.raises(Cancelled):
        pool.read_prompt(left)


def test_a_prompt_that_is_told_to_be_read_waits_for_a_slot(
    service: Any, speech: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees the metric finds the stage."""
    engine, seen = service.app.state.engine, []
    now = time.monotonic()
    request = ContinueRequest(now, now + 60, speech, 2, SamplingOptions(seed=1), 1)
    observe = engine.metrics.prefill_seconds.observe

    def watched(took: float) -> None:
        seen.append(request.stage)
        observe(took)

    monkeypatch.setattr(engine.metrics.prefill_seconds, "observe", watched)
    service.wait(engine.submit(request))
    assert seen == ["slot"]


def test_a_gauge_is_not_set_to_what_was(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is slow to say that a request runs must not say so after the event loop has said that it ended."""
    engine = service.app.state.engine
    gauge = engine.metrics.running
    entered, stored, store = threading.Event(), threading.Event(), gauge.set

    def late(value: float) -> None:
        if threading.current_thread().name.startswith("read"):
            entered.set()
            time.sleep(0.2)
            store(value)
            stored.set()
        else:
            store(value)

    monkeypatch.setattr(gauge, "set", late)
    request = Gate(engine).request
    running = asyncio.run_coroutine_threadsafe(engine.submit(request), service.loop)
    assert entered.wait(HANG_SECONDS)
    running.cancel()
    until(lambda: request.ended and stored.is_set())
    assert service.get("/livez").status_code == 200  # the event loop is done with it
    assert service.value("requests_running") == 0


def end_all(request: EngineRequest) -> None:
    """What no handler of plain exceptions catches."""
    raise SystemExit(3)


def test_the_engine_outlives_a_request_that_asks_to_end_it(service: Any) -> None:
    engine = service.app.state.engine

    async def told() -> bool:
        try:
            await engine.submit(request_that(engine, end_all))
        except SystemExit:
            return True
        return False

    assert asyncio.run_coroutine_threadsafe(told(), service.loop).result(HANG_SECONDS)
    with busy(service):  # the thread still takes work
        assert engine.healthy


def test_a_request_whose_client_left_keeps_no_audio_alive(service: Any) -> None:
    """It stays in the queue until its turn; the clip must not."""
    engine = service.app.state.engine

    async def leave() -> weakref.ref[np.ndarray]:
        clip = np.zeros(24_000, np.float32)
        now = time.monotonic()
        task = asyncio.ensure_future(
            engine.submit(ContinueRequest(now, now + 60, clip, 10, SamplingOptions(seed=1), 1))
        )
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        return weakref.ref(clip)

    with busy(service):
        alive = asyncio.run_coroutine_threadsafe(leave(), service.loop).result(HANG_SECONDS)
        gc.collect()
        assert alive() is None
