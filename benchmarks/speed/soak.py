"""Does a server stand? Ten thousand requests, 30 of 100 hostile, and what they leave behind.

    python -m benchmarks.speed.soak                        # 10,000 requests (Linux)

Of the good ones some read a prompt to be kept, go on from an earlier answer, or talk over a WebSocket; of the hostile
ones some do these wrongly.

The laws: no 5xx but what is asked for (a request that gives itself a thousandth of a second: 504), every visit is
answered as its kind may be, memory has no slope after a warm-up, and descriptors, threads, permits, files for uploads,
shared memory and decoders are at the end what they were at its end.

Weights are random ones of the smallest preset unless ``--bundle`` names others: none of these laws depends on what the
model says, and so the requests take minutes. Memory is read at rest, when free memory has been given back: under load
it goes up and down by more than any slope. Its slope after the warm-up is Theil's and Sen's, the median of those of all
pairs of rests, with the interval in which it lies with 95 of 100: single rests may lie anywhere.

What is kept of prompts is bounded to little (``--prompts-mib``), so that it is full when the warm-up ends.
"""

import argparse
import asyncio
import math
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.audio.formats import MEDIA_TYPES, STREAMED
from app.client import ApiError, AsyncClient
from app.server.memory import GIVE_BACK_SECONDS
from benchmarks.common import RESULTS
from benchmarks.speed.hostile import Guest, clip, file, hostile
from benchmarks.speed.requests_memory import recording
from benchmarks.speed.served import Server, serving
from benchmarks.speed.timing import conditions, console, write
from model.checkpoint import random_bundle, save_bundle

HOSTILE = 0.3
SESSIONS, GO_ON = 0.03, 0.2  # of the good ones; of the answers that tell their id in a header
WARM_UP = 0.3  # of the requests: caches fill, pools of threads reach their size
RESTS = 20  # at which memory is read, evenly spread over the requests
SLOPE_BYTES = 1_000.0  # a request: the law
SURE = 1.96  # of a normal distribution: 95 of 100 lie so many deviations around the mean
KIB = 1024.0


@dataclass(frozen=True)
class State:
    """What a server holds when nobody asks anything of it."""

    requests: int  # so far
    resident_mib: float
    own_kib: float  # of that, what no file holds
    decoders_kib: float  # the same of its decoders together
    descriptors: int
    threads: int
    permits: float  # requests inside, running or waiting
    slots: float
    files: int  # of uploads: in the folder for them, and open without a name
    shared: int  # pieces of shared memory that it has open or mapped
    decoders: int

    def left(self, before: "State") -> dict[str, float]:
        """What there is more than before; nothing, as a rule."""
        names = ("descriptors", "threads", "permits", "slots", "files", "shared", "decoders")
        more = {name: getattr(self, name) - getattr(before, name) for name in names}
        return {name: count for name, count in more.items() if count}


def kib(pid: int, name: str) -> float:
    """A line of a process's status; 0 when it has just ended."""
    try:
        found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return float(found[1]) if found else 0.0


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(one) for task in tasks for one in (task / "children").read_text().split()]


def open_files(pid: int) -> list[str]:
    """What a process's descriptors are."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(one.readlink()))
        except FileNotFoundError:  # closed since
            continue
    return found


def state(server: Server, uploads: Path, requests: int) -> State:
    """As it is now. ``uploads``: the server's TMPDIR."""
    handles, own = open_files(server.pid), children(server.pid)
    mapped = Path(f"/proc/{server.pid}/maps").read_text().count("/memfd:samples")
    return State(
        requests=requests,
        resident_mib=kib(server.pid, "VmRSS") / KIB,
        own_kib=kib(server.pid, "RssAnon"),
        decoders_kib=sum(kib(one, "RssAnon") for one in own),
        descriptors=len(handles),
        threads=round(kib(server.pid, "Threads")),
        permits=server.metric("requests_running") + server.metric("requests_waiting"),
        slots=server.metric("slots_used"),
        files=len(list(uploads.iterdir())) + sum(name.startswith(str(uploads)) for name in handles),
        shared=mapped + sum(name.startswith("/memfd:samples") for name in handles),
        decoders=len(own),
    )


def at_rest(server: Server, uploads: Path, requests: int) -> State:
    """When all requests are gone, and free memory has been given back: one look of the server later."""
    end = time.monotonic() + 60
    while server.metric("requests_running") + server.metric("requests_waiting") and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(GIVE_BACK_SECONDS + 3)
    return state(server, uploads, requests)


def slope_bytes(states: list[State]) -> tuple[float, float, float]:
    """Of the server's memory that no file holds: bytes a request, and the interval in which that lies with 95 of 100.

    Sen (1968), "Estimates of the regression coefficient based on Kendall's tau". Without the decoders, which are
    replaced after 256 files: what they hold tells how old they are.
    """
    at = np.array([one.requests for one in states], np.float64)
    held = np.array([one.own_kib for one in states]) * KIB
    one, other = np.triu_indices(len(at), 1)
    found = np.sort((held[other] - held[one]) / (at[other] - at[one]))
    deviation = math.sqrt(len(at) * (len(at) - 1) * (2 * len(at) + 5) / 18)
    low, high = (round((len(found) + side * SURE * deviation) / 2) for side in (-1, 1))
    return float(np.median(found)), float(found[max(low, 0)]), float(found[min(high, len(found) - 1)])


def slopes(states: list[State]) -> dict[str, float]:
    """The slope from each rest of the first half on, by its requests: they differ where memory has no straight line."""
    begins = [at for at, one in enumerate(states) if 0 < one.requests <= states[-1].requests / 2]
    return {str(states[at].requests): slope_bytes(states[at:])[0] for at in begins if at < len(states) - 1}


def good(index: int) -> tuple[str, list[bytes], dict[str, str]]:
    """Path, files and fields of a request that shall be answered with 200."""
    rng = random.Random(f"good {index}")

    if rng.random() < 0.02:
        return "/score", [file(13.0, "WAV", 44_100)], {}  # more than 1 MiB: it is kept in a file
    if rng.random() < 0.25:
        detail = rng.choice(["summary", "tokens", "full"])
        return "/score", [clip(rng) for _ in range(rng.randrange(1, 4))], {"detail": detail}
    if rng.random() < 0.05:
        return "/v1/audio/prompts", [clip(rng)], {}
    streamed = rng.random() < 0.3
    form = rng.choice([name for name in ("json", *MEDIA_TYPES) if not streamed or name in ("json", *STREAMED)])
    fields = {"seconds": f"{rng.uniform(0.1, 0.3):.2f}", "seed": str(index), "response_format": form}
    if form == "json":
        fields["n"] = str(rng.randrange(1, 3))
    if streamed:
        fields["stream"] = "true"
    elif rng.random() < 0.3:
        fields["include_prompt"] = "true"
    return "/continue", [clip(rng)], fields


@dataclass
class Soak:
    """Requests sent, several at a time, in the order of their numbers."""

    server: Server
    at_once: int
    outcomes: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # that good clients waited for their whole answers
    done: int = 0

    async def send(self, first: int, count: int) -> None:
        """Requests ``first`` to ``first + count``."""
        numbers = iter(range(first, first + count))
        async with httpx.AsyncClient(base_url=self.server.url, timeout=120) as client:
            await asyncio.gather(*(self._client(client, numbers) for _ in range(self.at_once)))

    async def _client(self, client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for index in numbers:
            if random.Random(index).random() < HOSTILE:
                await self._hostile(index)
            elif random.Random(f"session {index}").random() < SESSIONS:
                await self._session(index)
            else:
                await self._good(client, index)
            self.done += 1

    async def _hostile(self, index: int) -> None:
        visit = await asyncio.to_thread(hostile, index)
        guest = Guest(visit)
        outcome = await guest.call(int(self.server.url.rpartition(":")[2]))
        self.outcomes[f"{visit.kind}: {outcome}"] += 1
        if outcome not in visit.expected:
            self.unexpected.append(f"{index} {visit.kind}: {outcome} {bytes(guest.answer[-300:])!r}")

    async def _good(self, client: httpx.AsyncClient, index: int) -> None:
        path, files, fields = await asyncio.to_thread(good, index)
        parts = [("file", (f"clip{at}", content)) for at, content in enumerate(files)]
        began = time.perf_counter()
        try:
            answer = await client.post(path, files=parts, data=fields)
            outcome, said = str(answer.status_code), answer.content[-300:]
        except httpx.HTTPError as error:
            outcome, said, answer = type(error).__name__, str(error).encode(), httpx.Response(0)
        self.seconds.append(time.perf_counter() - began)
        self._told(index, "good", outcome, said)
        if "x-whispergpt-id" in answer.headers and random.Random(f"goes on {index}").random() < GO_ON:
            more = {"continue_from": answer.headers["x-whispergpt-id"], "seconds": "0.1", "seed": "1"}
            answer = await client.post(path, files={name: (None, value) for name, value in more.items()})
            # 404: others came meanwhile, and the room for what is kept is small
            self._told(index, "goes on", str(answer.status_code), answer.content[-300:], {"200", "404"})

    async def _session(self, index: int) -> None:
        """Speaks, and has two responses made, the second of which goes on from the first."""
        said = await asyncio.to_thread(recording, 0.5 + index % 4 / 4, "WAV", 24_000)
        began, outcome, words = time.perf_counter(), "200", b""
        try:
            async with asyncio.timeout(120), AsyncClient(self.server.url).session() as session:
                for start in range(44, len(said), 9_600):
                    await session.append(said[start : start + 9_600])
                await session.commit()
                await session.respond(seconds=0.2, seed=index)
                done = 0
                async for event in session:
                    if event["type"] == "error":
                        outcome, words = event["error"]["code"], str(event).encode()
                        break
                    done += event["type"] == "response.done"
                    if done == 2:
                        break
                    if event["type"] == "response.done":
                        await session.respond("response", seconds=0.1, seed=index)
        except (ApiError, TimeoutError) as error:
            outcome, words = type(error).__name__, str(error).encode()
        self.seconds.append(time.perf_counter() - began)
        self._told(index, "session", outcome, words)

    def _told(
        self, index: int, kind: str, outcome: str, said: bytes, expected: Collection[str] = frozenset({"200"})
    ) -> None:
        self.outcomes[f"{kind}: {outcome}"] += 1
        if outcome not in expected:
            self.unexpected.append(f"{index} {kind}: {outcome} {said!r}")


def soak(run: Soak, uploads: Path, requests: int, rests: int, until: float = math.inf) -> Iterator[list[State]]:
    """Sends them all, or as many as fit; at each rest the states so far, the one at the start first."""
    states = [at_rest(run.server, uploads, 0)]
    for number in range(rests):
        if time.monotonic() > until:
            return
        first, end = (round(requests * share / rests) for share in (number, number + 1))
        asyncio.run(run.send(first, end - first))
        states.append(at_rest(run.server, uploads, run.done))
        yield states


def summary(run: Soak, states: list[State], said: str) -> dict[str, Any]:
    """What became of the laws."""
    warm = next(one for one in states if one.requests >= WARM_UP * run.done)
    after = [one for one in states if one.requests >= warm.requests]
    slope = slope_bytes(after) if len(after) > 1 else (math.nan,) * 3
    p50, p95, p99 = np.percentile(run.seconds, [50, 95, 99])
    five = {
        name: count for name, count in run.outcomes.items() if re.search(r": 5\d\d$", name) and name[:7] != "no time"
    }
    return {
        "requests": run.done,
        "hostile": run.done - len(run.seconds),
        "unexpected_5xx": sum(five.values()),
        "unexpected": run.unexpected[:20],
        "unexpected_count": len(run.unexpected),
        "tracebacks": said.count("Traceback"),
        "slope_bytes_a_request": slope[0],
        "slope_bytes_95": slope[1:],
        "slopes_from": slopes(states),
        "decoders_mib": {
            "low": min(one.decoders_kib for one in after) / KIB,
            "high": max(one.decoders_kib for one in after) / KIB,
        },
        "left_behind": states[-1].left(warm),
        "good_seconds": {"p50": p50, "p95": p95, "p99": p99, "max": max(run.seconds)},
        "outcomes": dict(sorted(run.outcomes.items())),
        "warm": asdict(warm),
        "states": [asdict(one) for one in states],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: random weights of the smallest preset")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no more are sent")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="the server's")
    parser.add_argument("--prompts-mib", type=float, default=8.0, help="the server's")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    arguments = parser.parse_args()
    weights = arguments.bundle.name if arguments.bundle else "random, of the smallest preset"
    made_on = conditions() | {
        "weights": weights, "server_threads": arguments.threads, "at_once": arguments.at_once,
        "prompts_mib": arguments.prompts_mib,
    }  # fmt: skip
    console.print(made_on)
    with ExitStack() as held:
        folder, uploads = (Path(held.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        if not arguments.bundle:
            save_bundle(random_bundle(), folder)
        flags = ["--threads", str(arguments.threads), "--drain-grace-seconds", "0", "--prompts-mib",
                 str(arguments.prompts_mib)]  # fmt: skip
        began = time.monotonic()
        server = held.enter_context(serving(arguments.bundle or folder, *flags, TMPDIR=str(uploads)))
        run, until = Soak(server, arguments.at_once), began + 60 * arguments.minutes
        found: dict[str, Any] = {}
        for states in soak(run, uploads, arguments.requests, RESTS, until):
            found = summary(run, states, server.said()) | {"minutes": (time.monotonic() - began) / 60}
            console.print(states[-1], found["slope_bytes_a_request"], found["slope_bytes_95"], run.unexpected[-3:])
            write(arguments.out, made_on, found)  # what there is, should it be stopped
    print(
        f"{run.done} requests, {found['hostile']} of them hostile, in {found['minutes']:.0f} minutes: "
        f"{found['unexpected_5xx']} unexpected 5xx, {found['unexpected_count']} unexpected outcomes, "
        f"{found['slope_bytes_a_request']:+.0f} bytes a request after the warm-up, from "
        f"{found['slope_bytes_95'][0]:+.0f} to {found['slope_bytes_95'][1]:+.0f} (the law: below {SLOPE_BYTES:.0f}), "
        f"left behind: {found['left_behind'] or 'nothing'}"
    )


if __name__ == "__main__":
    main()
