"""Load on a server: when requests leave, what a listener hears, what became of each.

Open loop: a request leaves when its time has come, whether or not those before it were answered, and its latency counts
from that time. So a server that stalls is charged for all that should have been sent meanwhile (a closed loop leaves
these requests out and flatters it: "coordinated omission").
"""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from app.client.calls import server_url
from app.client.kinds import Arrivals, Form, Route
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ

BYTES_A_SECOND = 2 * SAMPLE_RATE_HZ  # of pcm: s16le, mono


@dataclass(frozen=True)
class Load:
    """What is sent. Either ``rate`` (open loop) or ``concurrency`` (closed loop), ``requests`` or ``duration``."""

    clips: Sequence[tuple[str, bytes]]  # name and file; requests take them in turn
    url: str
    route: Route = "continue"
    rate: float | None = None  # requests a second
    arrivals: Arrivals = "poisson"
    concurrency: int = 1  # without a rate: clients that each send the next request when the last one is answered
    requests: int | None = None
    duration: float | None = None  # seconds in which requests leave
    seconds: float = 5.0  # of audio to make
    stream: bool = False
    response_format: Form = "json"
    seed: int = 0  # of the arrivals; request i asks for seed + i
    key: str | None = None
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        assert self.requests is not None or self.duration is not None, "a load that never ends"


class Player:
    """A listener who starts to play at the first audio, and needs each piece when all before it has been played."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.received = 0.0  # seconds of audio
        self.short = 0.0  # seconds of audio that should have been held back for no piece to come too late

    def take(self, seconds: float, now: float) -> None:
        """A piece of so many seconds of audio has come."""
        if self.first is None:
            self.first = now
        else:
            self.short = max(self.short, now - self.first - self.received)
        self.received += seconds


@dataclass
class Outcome:
    """One request; times in seconds since the load began."""

    index: int
    scheduled: float
    sent: float
    ended: float = 0.0
    error: str | None = None  # "429 overloaded", "no connection", "broken off", ...
    audio_seconds: float = 0.0  # made, or scored
    first_audio: float | None = None  # after the scheduled time; of whole answers the server's own figure is taken
    queue: float | None = None  # as the server reports it
    short: float | None = None  # of a stream: what its player had to hold back (`Player.short`)

    @property
    def total(self) -> float:
        """Seconds from the scheduled time to the last byte."""
        return self.ended - self.scheduled


@dataclass
class Report:
    """All requests of a load."""

    outcomes: list[Outcome] = field(default_factory=list)
    in_flight: int = 0
    seconds: float = 0.0  # from the first scheduled time to the last answer


class Refused(Exception):
    """An answer, or a part of one, that says that the request failed; the message is a short code."""


def schedule(load: Load) -> Iterator[float]:
    """When the requests of an open loop leave: seconds since its start, ascending."""
    assert load.rate is not None, "a closed loop has no schedule"
    numbers = np.random.default_rng(load.seed)
    at = 0.0
    for index in itertools.count():
        if load.requests is not None and index >= load.requests:
            return
        if load.duration is not None and at >= load.duration:
            return
        yield at
        at += float(numbers.exponential(1 / load.rate)) if load.arrivals == "poisson" else 1 / load.rate


async def events(answer: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event (WHATWG HTML, section 9.2; what this server sends of it)."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])


def error_code(answer: httpx.Response) -> str:
    """Status and code of an answer that is not a 200."""
    try:
        return f"{answer.status_code} {answer.json()['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status_code)


class Client:
    """Sends the requests of a load and writes down what becomes of them."""

    def __init__(self, load: Load, client: httpx.AsyncClient, on_progress: Callable[[Report], None]) -> None:
        self.load, self.client, self.on_progress = load, client, on_progress
        self.report = Report()
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start

    async def run(self) -> Report:
        """Sends everything; returns when all is answered."""
        self._start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            if self.load.rate is None:
                indices = itertools.count()
                for _ in range(self.load.concurrency):
                    group.create_task(self._one_after_the_other(indices))
            else:
                for index, at in enumerate(schedule(self.load)):
                    await asyncio.sleep(max(0.0, at - self.now()))
                    group.create_task(self.one(index, at))
        self.report.seconds = self.now()
        return self.report

    async def _one_after_the_other(self, indices: Iterator[int]) -> None:
        for index in indices:
            if self.load.requests is not None and index >= self.load.requests:
                return
            if self.load.duration is not None and self.now() >= self.load.duration:
                return
            await self.one(index, self.now())

    async def one(self, index: int, scheduled: float) -> None:
        """One request, whatever comes of it."""
        outcome = Outcome(index, scheduled, self.now())
        self.report.in_flight += 1
        try:
            await self._ask(outcome)
        except Refused as refused:
            outcome.error = str(refused)
        except httpx.TimeoutException:
            outcome.error = "no answer in time"
        except httpx.ConnectError:
            outcome.error = "no connection"
        except (httpx.HTTPError, ValueError, KeyError, IndexError):  # a connection that ended, or half of a JSON
            outcome.error = "broken off"
        outcome.ended = self.now()
        self.report.in_flight -= 1
        self.report.outcomes.append(outcome)
        self.on_progress(self.report)

    async def _ask(self, outcome: Outcome) -> None:
        load = self.load
        name, content = load.clips[outcome.index % len(load.clips)]
        form = {}
        if load.route == "continue":
            form = {
                "seconds": f"{load.seconds:g}",
                "seed": str(load.seed + outcome.index),
                "stream": "true" if load.stream else "false",
                "response_format": load.response_format,
            }
        async with self.client.stream("POST", f"/{load.route}", data=form, files={"file": (name, content)}) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise Refused(error_code(answer))
            if load.route == "continue" and load.stream:
                await self._listen(answer, outcome)
                return
            await answer.aread()
        if load.route == "score":
            self._scored(answer.json(), outcome)
        elif load.response_format == "json":
            body = answer.json()
            outcome.audio_seconds = sum(len(choice["tokens"]) for choice in body["choices"]) / FRAME_RATE_HZ
            self._timed(body, outcome)
            # the server counts from the request's arrival there
            outcome.first_audio = outcome.sent - outcome.scheduled + body["timings"]["first_audio_seconds"]
        else:
            outcome.audio_seconds = len(answer.content) / BYTES_A_SECOND
            if answer.headers.get("x-whispergpt-finish-reason") == "timeout":
                raise Refused("part only")

    async def _listen(self, answer: httpx.Response, outcome: Outcome) -> None:
        """Take a stream as a player would. Raises Refused when it does not come to its end."""
        player, done = Player(), False
        try:
            if self.load.response_format == "pcm":
                async for block in answer.aiter_raw():
                    player.take(len(block) / BYTES_A_SECOND, self.now())
                done = player.received > self.load.seconds - 1 / SAMPLE_RATE_HZ
            else:
                async for name, data in events(answer):
                    if name == "audio.delta":
                        player.take(len(base64.b64decode(data["audio"])) / BYTES_A_SECOND, self.now())
                    elif name == "audio.error":
                        raise Refused(f"200 {data['error']['code']}")
                    elif name == "audio.done":
                        done = True
                        self._timed(data, outcome)
        finally:
            outcome.audio_seconds = player.received
            if player.first is not None:
                outcome.first_audio = player.first - outcome.scheduled
                outcome.short = player.short
        if not done:
            raise Refused("part only")

    @staticmethod
    def _timed(body: dict[str, Any], outcome: Outcome) -> None:
        outcome.queue = body["timings"]["queue_seconds"]
        if any(choice["finish_reason"] != "length" for choice in body["choices"]):
            raise Refused("part only")

    @staticmethod
    def _scored(body: dict[str, Any], outcome: Outcome) -> None:
        for result in body["results"]:
            if "error" in result:
                raise Refused(f"200 {result['error']['code']}")
        outcome.audio_seconds = sum(result["seconds"] for result in body["results"])


async def put_load(load: Load, on_progress: Callable[[Report], None] = lambda report: None) -> Report:
    """Send a load and wait for all its answers; ``on_progress`` hears of each."""
    headers = {"authorization": f"Bearer {load.key}"} if load.key else {}
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(load.timeout_seconds)
    url = server_url(load.url)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=unlimited, timeout=timeout) as client:
        return await Client(load, client, on_progress).run()


PERCENTILES = (50, 90, 95, 99)


def percentiles(values: Sequence[float], high_is_bad: bool = True) -> dict[str, float] | None:
    """p50 to p99 and the worst, each a value that occurred: so many percent were at least this good."""
    if not values:
        return None
    bad_last = sorted(values, reverse=not high_is_bad)
    found = {f"p{p}": bad_last[max(0, -(-len(values) * p // 100) - 1)] for p in PERCENTILES}
    return found | {"worst": bad_last[-1]}


def summary(report: Report, buffer_seconds: float = 0.0) -> dict[str, Any]:
    """The figures of a load: percentiles over the requests that were answered, counts, throughput.

    A stream underran when its player, who holds back ``buffer_seconds`` of audio before it plays, ran out of it.
    """
    good = [one for one in report.outcomes if one.error is None]
    errors: dict[str, int] = {}
    for one in report.outcomes:
        if one.error is not None:
            errors[one.error] = errors.get(one.error, 0) + 1
    shorts = [one.short for one in good if one.short is not None]
    audio = sum(one.audio_seconds for one in good)
    waits = [one.sent - one.scheduled for one in report.outcomes]
    return {
        "requests": len(report.outcomes),
        "answered": len(good),
        "overloaded": sum(count for code, count in errors.items() if code.startswith("429")),
        "errors": dict(sorted(errors.items())),
        "seconds": report.seconds,
        "requests_a_second": len(good) / max(report.seconds, 1e-9),
        "audio_seconds_a_second": audio / max(report.seconds, 1e-9),
        "late_to_leave_seconds": max(waits, default=0.0),  # this client's own fault, and part of the latencies
        "streams": len(shorts),
        "underruns": sum(short > buffer_seconds for short in shorts),
        "figures": {
            "first_audio_seconds": percentiles([one.first_audio for one in good if one.first_audio is not None]),
            "total_seconds": percentiles([one.total for one in good]),
            "queue_seconds": percentiles([one.queue for one in good if one.queue is not None]),
            "real_time_factor": percentiles([one.audio_seconds / one.total for one in good if one.total > 0], False),
            "buffer_needed_seconds": percentiles(shorts),
        },
    }
