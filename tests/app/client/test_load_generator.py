"""The load generator: its clock is the schedule, its listener plays in real time, and it counts everything."""

import asyncio
import base64
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app.client import load_generator
from app.client.load_generator import BYTES_A_SECOND, Load, Player, Report, percentiles, put_load, schedule, summary
from tests.support.live import listening

CLIPS = [("a.wav", b"one"), ("b.wav", b"two")]


def asked(answer: Callable[[Request], Any], **settings: Any) -> Report:
    """The report of a load on a server with this answer to POST /continue and /score."""
    routes = [Route(path, answer, methods=["POST"]) for path in ("/continue", "/score")]
    with listening(Starlette(routes=routes), log_level="critical", lifespan="off") as url:
        return asyncio.run(put_load(Load(clips=CLIPS, url=url, timeout_seconds=5, **settings)))


def whole(frames: int = 15, queue: float = 0.01) -> dict[str, Any]:
    choice = {"tokens": [0] * frames, "finish_reason": "length"}
    return {"choices": [choice], "timings": {"queue_seconds": queue, "first_audio_seconds": 0.02}}


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_arrivals_have_their_rate(arrivals: Any) -> None:
    load = Load(clips=CLIPS, url="", rate=50.0, arrivals=arrivals, requests=4000)
    times = list(schedule(load))
    gaps = np.diff(times)
    assert len(times) == 4000 and times[0] == 0.0 and (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50 if arrivals == "poisson" else 0.0, abs=2e-3)
    assert list(schedule(load)) == times


def test_a_duration_ends_the_arrivals() -> None:
    times = list(schedule(Load(clips=CLIPS, url="", rate=10.0, arrivals="constant", duration=2.05)))
    assert times == pytest.approx([i / 10 for i in range(21)])


def test_slow_answers_delay_no_arrival_and_count_from_the_schedule() -> None:
    """No answer comes before the last request has: a client that waited for answers would never send it."""
    inside, all_in = 0, asyncio.Event()

    async def slow(request: Request) -> Response:
        nonlocal inside
        inside += 1
        if inside == 10:
            all_in.set()
        await all_in.wait()
        return JSONResponse(whole())

    report = asked(slow, rate=50.0, arrivals="constant", requests=10)
    by_index = sorted(report.outcomes, key=lambda one: one.index)
    assert [one.scheduled for one in by_index] == pytest.approx([i / 50 for i in range(10)])
    last = by_index[-1]
    for one in by_index:
        assert one.error is None
        assert one.sent >= one.scheduled
        assert one.scheduled + one.total >= last.scheduled  # from the schedule to an answer after the last arrival


def test_a_client_that_is_late_itself_is_charged() -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse(whole())

    app = Starlette(routes=[Route("/continue", answer, methods=["POST"])])
    with listening(app, log_level="critical", lifespan="off") as url:
        load = Load(clips=CLIPS, url=url, rate=20.0, arrivals="constant", requests=6)

        async def held_up() -> Report:
            asyncio.get_running_loop().call_later(0.06, time.sleep, 0.5)
            return await put_load(load)

        report = asyncio.run(held_up())
    late = max(one.sent - one.scheduled for one in report.outcomes)
    assert late > 0.3 and max(one.total for one in report.outcomes) > late
    assert summary(report)["late_to_leave_seconds"] == late


def test_a_closed_loop_waits_for_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, 0

    async def answer(request: Request) -> Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.03)
        under_way -= 1
        return JSONResponse(whole())

    clock = itertools.count(1.0).__next__  # tells how often it was looked at, and nothing of this machine
    monkeypatch.setattr(load_generator, "time", SimpleNamespace(perf_counter=clock))
    report = asked(answer, concurrency=3, requests=11)
    assert most == 3
    assert sorted(one.index for one in report.outcomes) == list(range(11))
    assert all(one.sent == one.scheduled + 1 for one in report.outcomes), "sent as soon as it is due"


def test_what_is_sent() -> None:
    seen = []

    async def answer(request: Request) -> Response:
        async with request.form() as form:
            seen.append({name: value if isinstance(value, str) else await value.read() for name, value in form.items()})
        return JSONResponse(whole())

    report = asked(answer, concurrency=1, requests=3, seconds=0.2, seed=7)
    assert [one["seed"] for one in seen] == ["7", "8", "9"]
    assert [one["file"] for one in seen] == [b"one", b"two", b"one"]
    assert {one["seconds"] for one in seen} == {"0.2"} and {one["stream"] for one in seen} == {"false"}
    assert all(one.audio_seconds == pytest.approx(0.2) and one.queue == 0.01 for one in report.outcomes)


class Clock:
    """The load's clock, which moves when the server says so: a piece comes at the moment that it is meant to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.sent, self._heard = 0.0, 0.0, 0.0
        monkeypatch.setattr(load_generator, "time", SimpleNamespace(perf_counter=lambda: self.now))
        take = Player.take

        def heard(player: Player, seconds: float, now: float) -> None:
            take(player, seconds, now)
            self._heard += seconds

        monkeypatch.setattr(Player, "take", heard)

    async def pause(self, seconds: float) -> None:
        """So many seconds pass once the client has all that was sent."""
        while self._heard < self.sent - 1e-6:  # noqa: ASYNC110 - the client is on another event loop
            await asyncio.sleep(0.001)
        self.now += seconds


def streamed(
    pieces: list[tuple[float, float]], form: str, end: str = "audio.done", clock: Clock | None = None
) -> Callable[[Request], Any]:
    """Sends each piece of (seconds of audio) after a pause of (seconds)."""

    async def content() -> AsyncIterator[bytes]:
        for pause, seconds in pieces:
            await (asyncio.sleep(pause) if clock is None else clock.pause(pause))
            if clock is not None:
                clock.sent += seconds
            pcm = b"\1\0" * round(seconds * BYTES_A_SECOND / 2)
            data = {"index": 0, "audio": base64.b64encode(pcm).decode(), "tokens": [], "logprobs": []}
            yield pcm if form == "pcm" else f"event: audio.delta\ndata: {json.dumps(data)}\n\n".encode()
        if form == "json" and end:
            last = whole() if end == "audio.done" else {"error": {"code": "draining"}}
            yield f"event: {end}\ndata: {json.dumps(last)}\n\n".encode()

    async def answer(request: Request) -> Response:
        return StreamingResponse(content())

    return answer


@pytest.mark.parametrize("form", ["pcm", "json"])
def test_a_piece_that_comes_too_late_is_an_underrun(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 s of audio, 0.4 s of nothing, the rest: the player runs dry for 0.3 s."""
    settings = {"stream": True, "response_format": form, "seconds": 0.6, "requests": 2}
    report = asked(streamed([(0.1, 0.1), (0.4, 0.5)], form, clock=Clock(monkeypatch)), **settings)
    for one in report.outcomes:
        assert one.error is None and one.audio_seconds == pytest.approx(0.6)
        assert one.first_audio == pytest.approx(0.1)
        assert one.short == pytest.approx(0.3)
        assert one.queue == (0.01 if form == "json" else None)
    assert summary(report)["underruns"] == 2
    assert summary(report, buffer_seconds=0.5)["underruns"] == 0


@pytest.mark.parametrize("form", ["pcm", "json"])
def test_pieces_in_time_are_none(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_time = streamed([(0.0, 0.4), (0.1, 0.4), (0.1, 0.4)], form, clock=Clock(monkeypatch))
    report = asked(in_time, stream=True, response_format=form,
                   seconds=1.2, requests=1)  # fmt: skip
    assert report.outcomes[0].short == 0.0 and summary(report)["underruns"] == 0


@pytest.mark.parametrize(("form", "end", "code"), [
    ("pcm", "", "part only"), ("json", "", "part only"), ("json", "audio.error", "200 draining"),
])  # fmt: skip
def test_a_stream_without_its_end_has_failed(form: Any, end: str, code: str) -> None:
    report = asked(streamed([(0.0, 0.5)], form, end), stream=True, response_format=form, seconds=1.0, requests=1)
    assert report.outcomes[0].error == code


def test_errors_are_counted_by_code() -> None:
    answers = iter([
        JSONResponse({"error": {"code": "overloaded"}}, 429), JSONResponse(whole()), Response("?", 502),
        JSONResponse({"error": {"code": "overloaded"}}, 429), Response("no JSON"),
    ])  # fmt: skip

    async def answer(request: Request) -> Response:
        return next(answers)

    found = summary(asked(answer, requests=5))
    assert found["errors"] == {"429 overloaded": 2, "502": 1, "broken off": 1}
    assert found["overloaded"] == 2 and found["requests"] == 5 and found["answered"] == 1
    assert found["figures"]["total_seconds"]["p99"] == found["figures"]["total_seconds"]["p50"]


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        report = asyncio.run(put_load(Load(clips=CLIPS, url=url, requests=2)))
    found = summary(report)
    assert found["errors"] == {"no connection": 2} and found["figures"]["total_seconds"] is None


def test_scores() -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse({"results": [{"filename": "a", "seconds": 2.0}]})

    report = asked(answer, route="score", requests=2)
    assert [one.audio_seconds for one in report.outcomes] == [2.0, 2.0]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(v) for v in np.random.default_rng(0).permutation(200)]
    assert percentiles(values) == {"p50": 99.0, "p90": 179.0, "p95": 189.0, "p99": 197.0, "worst": 199.0}
    assert percentiles(values, high_is_bad=False) == {"p50": 100.0, "p90": 20.0, "p95": 10.0, "p99": 2.0, "worst": 0.0}
    assert percentiles([3.0]) == dict.fromkeys(("p50", "p90", "p95", "p99", "worst"), 3.0)
    assert percentiles([]) is None


def test_a_player_needs_each_piece_when_all_before_it_has_been_played() -> None:
    player = Player()
    for at, seconds in ((5.0, 0.04), (5.03, 0.08), (5.2, 0.16), (5.25, 0.1)):
        player.take(seconds, at)
    assert player.first == 5.0 and player.received == pytest.approx(0.38)
    assert player.short == pytest.approx(0.08)  # the third was needed at 5.12
