"""How long a client waits for the first audio, over HTTP, from the moment at which its request should leave.

    python -m benchmarks.speed.first_audio                 # about 3 minutes

Alone: requests one after the other, prompts of 3 and 10 s in turns. Under load: requests that arrive at random,
``RATE`` a second, each for 5 s of audio, on the server as it comes and on one that serves one request at a time
(``--slots 1``), in turns.
"""

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cli.bench import clips
from app.client.load_generator import Load, Outcome, percentiles, put_load, summary
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import serving
from benchmarks.speed.timing import conditions, console, write

PROMPTS_SECONDS = (3.0, 10.0)
RATE, MADE_SECONDS = 1.5, 5.0
SLOTS = {"as it comes": (), "one request at a time": ("--slots", "1")}


def alone(url: str, requests: int, rounds: int) -> dict[str, Any]:
    """First audio by length of prompt, nothing else under way."""
    found: dict[str, list[Outcome]] = {}
    for turn in range(rounds + 1):
        for seconds in PROMPTS_SECONDS:
            load = Load(clips=clips([], seconds), url=url, requests=requests, seconds=1.0, stream=True,
                        response_format="pcm", seed=turn)  # fmt: skip
            outcomes = asyncio.run(put_load(load)).outcomes
            if turn:  # the first turn warms up
                found.setdefault(f"{seconds:g} s prompt", []).extend(outcomes)
    bad = [one.error for outcomes in found.values() for one in outcomes if one.error]
    assert not bad, bad
    return {
        name: {"requests": len(all_), "first_audio_seconds": percentiles([one.first_audio or 0.0 for one in all_])}
        for name, all_ in found.items()
    }


def under_load(bundle: Path, duration: float) -> dict[str, Any]:
    """Both servers, the same arrivals."""
    found = {}
    for name, flags in SLOTS.items():
        with serving(bundle, *flags, "--queue", "64") as server:
            load = Load(clips=clips([], PROMPTS_SECONDS[0]), url=server.url, rate=RATE, duration=duration,
                        seconds=MADE_SECONDS, stream=True, response_format="pcm", seed=1)  # fmt: skip
            asyncio.run(put_load(replace(load, rate=None, duration=None, requests=2)))
            found[name] = summary(asyncio.run(put_load(load)), 0.1)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--requests", type=int, default=10, help="of each length in a turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--duration", type=float, default=30.0, help="of each load, seconds; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=RESULTS / "first_audio.json")
    arguments = parser.parse_args()
    made_on = conditions() | {"rate": RATE, "made_seconds": MADE_SECONDS, "load_seconds": arguments.duration}
    console.print(made_on)
    with serving(arguments.bundle) as server:
        by_prompt = alone(server.url, arguments.requests, arguments.turns)
    for name, one in by_prompt.items():
        print(f"{name:14} p50 {one['first_audio_seconds']['p50'] * 1e3:.0f} ms, p95 "
              f"{one['first_audio_seconds']['p95'] * 1e3:.0f} ms ({one['requests']} requests)")  # fmt: skip
    loaded = under_load(arguments.bundle, arguments.duration) if arguments.duration else {}
    for name, one in loaded.items():
        first = one["figures"]["first_audio_seconds"]
        print(f"{RATE:g} a second, {name:22} p50 {first['p50'] * 1e3:.0f} ms, p95 {first['p95'] * 1e3:.0f} ms, "
              f"{one['underruns']} of {one['streams']} ran dry, errors {one['errors']}")  # fmt: skip
    write(arguments.out, made_on, {"alone": by_prompt, "load": loaded})


if __name__ == "__main__":
    main()
