"""Does memory grow with requests? Thousands of them, no two alike, and the server's memory read all the while.

    python -m benchmarks.speed.requests_memory             # about 10 minutes of two cores (Linux)

Request i is a function of i: prompts of 0.3 to 30 s, as WAV, FLAC, OGG or MP3 of several rates; whole answers and
streams in every format, clips to score, files that are no audio, clients that leave midway. The slopes are straight
lines through the readings of the first and of the second half: a leak has the same in both, what fills up once has none
in the second.
"""

import argparse
import asyncio
import io
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import numpy.typing as npt
import soundfile

from app.audio.formats import MEDIA_TYPES, STREAMED
from app.server.memory import GIVE_BACK_SECONDS
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import Server, serving
from benchmarks.speed.timing import conditions, console, write

MIB = 2.0**20
FILES = [("WAV", 24_000), ("FLAC", 24_000), ("OGG", 24_000), ("MP3", 24_000), ("WAV", 16_000), ("FLAC", 44_100)]
Kind = Literal["whole", "stream", "score", "leaves", "no audio"]
SHARES: dict[Kind, float] = {"whole": 0.55, "stream": 0.15, "score": 0.17, "leaves": 0.08, "no audio": 0.05}
Reading = tuple[int, float, float]  # requests answered so far, MiB that lie in memory, MiB of these that no file holds


@cache
def noise() -> npt.NDArray[np.float32]:
    """A minute of loud and soft noise at whatever rate it is written: what no file format makes small."""
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.random(480), 44_100 * 60 // 480)
    return (0.3 * rng.standard_normal(len(loudness)) * loudness).clip(-1, 1).astype(np.float32)


def recording(seconds: float, form: str, rate: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, noise()[: round(seconds * rate)], rate, format=form)
    return out.getvalue()


@dataclass(frozen=True)
class Wish:
    """One request."""

    kind: Kind
    files: list[bytes]
    fields: dict[str, str]
    leaves_after: float | None = None  # seconds

    @property
    def path(self) -> str:
        return "/score" if self.kind == "score" else "/continue"


def wish(index: int, longest: float) -> Wish:
    """The request of that number, with prompts of ``longest`` seconds at most."""
    rng = random.Random(index)
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if kind == "no audio":
        return Wish(kind, [rng.randbytes(rng.randrange(1, 200_000))], {})

    def clip(most: float) -> bytes:
        return recording(rng.uniform(0.3, min(most, longest)), *rng.choice(FILES))

    if kind == "score":
        clips = [clip(rng.choice([4, 4, 12])) for _ in range(rng.randrange(1, 5))]
        return Wish(kind, clips, {"detail": rng.choice(["summary", "tokens"])})
    fields = {"seconds": f"{rng.uniform(0.1, 0.6):.2f}", "seed": str(index)}
    prompt = clip(rng.choice([3, 3, 3, 3, 10, 10, 30]))
    if kind == "leaves":
        return Wish(kind, [prompt], fields | {"seconds": "20"}, rng.uniform(0.05, 0.6))
    form = rng.choice([name for name in ("json", *MEDIA_TYPES) if kind == "whole" or name in ("json", *STREAMED)])
    if form == "json":
        fields["n"] = str(rng.randrange(1, 5))
    streams = {"stream": "true"} if kind == "stream" else {"include_prompt": rng.choice(["true", "false"])}
    return Wish(kind, [prompt], fields | streams | {"response_format": form})


def reading(server: Server, done: int) -> Reading:
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = [re.search(rf"^{name}:\s+(\d+) kB", status, re.M) for name in ("VmRSS", "RssAnon")]
    whole, own = (int(one[1]) / 1024 for one in found if one)
    return done, whole, own


@dataclass
class Visits:
    """Requests sent, several at a time, in the order of their numbers."""

    server: Server
    at_once: int
    longest: float = 30.0
    every: int = 25  # requests between two readings
    outcomes: Counter[str] = field(default_factory=Counter)
    readings: list[Reading] = field(default_factory=list)
    done: int = 0

    async def send(self, first: int, count: int) -> None:
        """Requests ``first`` to ``first + count``."""
        numbers = iter(range(first, first + count))
        async with httpx.AsyncClient(base_url=self.server.url, timeout=300) as client:
            await asyncio.gather(*(self._visitor(client, numbers) for _ in range(self.at_once)))

    async def _visitor(self, client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for index in numbers:
            one = await asyncio.to_thread(wish, index, self.longest)
            parts = [("file", (f"clip{at}", content)) for at, content in enumerate(one.files)]
            outcome = "left"
            try:
                async with asyncio.timeout(one.leaves_after):
                    answer = await client.post(one.path, files=parts, data=one.fields)
                outcome = str(answer.status_code)
            except TimeoutError:
                pass
            self.outcomes[f"{one.kind}: {outcome}"] += 1
            self.done += 1
            if self.done % self.every == 0:
                self.readings.append(reading(self.server, self.done))


def at_rest(server: Server, done: int) -> Reading:
    """When all that is free has been given back: two looks of the server later."""
    time.sleep(2 * GIVE_BACK_SECONDS + 1)
    return reading(server, done)


def slope(readings: list[Reading]) -> float:
    """MiB of the process's own for each 1,000 requests, by least squares."""
    done, _, own = np.array(readings).T
    return float(np.polyfit(done / 1000, own, 1)[0])


def summary(readings: list[Reading], before: Reading, after: Reading) -> dict[str, Any]:
    half = len(readings) // 2
    return {
        "start_mib": before[1],
        "rest_mib": after[1],
        "high_mib": max(whole for _, whole, _ in readings),
        "first_half_mib_a_thousand": slope(readings[:half]),
        "second_half_mib_a_thousand": slope(readings[half:]),
        "readings": [before, *readings, after],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds of the longest prompt")
    parser.add_argument("--out", type=Path, default=RESULTS / "requests_memory.json")
    arguments = parser.parse_args()
    made_on = conditions() | {name: getattr(arguments, name) for name in ("requests", "at_once", "longest")}
    console.print(made_on)
    with serving(arguments.bundle) as server:
        before = half = reading(server, 0)
        visits = Visits(server, arguments.at_once, arguments.longest, every=max(1, arguments.requests // 80))
        for first in range(0, arguments.requests, arguments.requests // 10):
            count = min(arguments.requests // 10, arguments.requests - first)
            asyncio.run(visits.send(first, count))
            console.print(visits.done, visits.readings[-1], dict(visits.outcomes))
            if first < arguments.requests / 2 <= first + count:
                half = at_rest(server, visits.done)
        after = at_rest(server, visits.done)
    found = summary(visits.readings, before, after) | {
        "half_rest_mib": half[1],
        "outcomes": dict(sorted(visits.outcomes.items())),
    }
    print(
        f"{visits.done} requests: {found['start_mib']:.0f} MiB at the start, {found['high_mib']:.0f} at most, "
        f"{half[1]:.0f} at rest after a half, "
        f"{found['rest_mib']:.0f} at the end; under load "
        f"{found['first_half_mib_a_thousand']:+.0f} MiB a thousand in the first half, "
        f"{found['second_half_mib_a_thousand']:+.0f} in the second"
    )
    write(arguments.out, made_on, found)


if __name__ == "__main__":
    main()
