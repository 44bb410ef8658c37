"""A real server under arrivals at random, for the simulation to be held against: first audio by requests a second.

    python -m benchmarks.scaling.offered_load              # about 6 minutes, both cores, an idle machine
    python -m benchmarks.scaling.compare                   # what the simulation says of the same arrivals

Client and server are on one machine, as the simulation has them.
"""

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cli.bench import clips
from app.client.load_generator import Load, put_load, summary
from app.settings import Settings, default_threads
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.scaling.simulation import Machine
from benchmarks.speed.served import serving
from benchmarks.speed.timing import conditions, console, write

RATES = (0.5, 1.0, 1.5, 2.0, 2.5)
PROMPT_SECONDS, MADE_SECONDS, SEED = 3.0, 12.0, 1


def offered(url: str, rate: float, seconds: float) -> dict[str, Any]:
    """What the listeners of one load got."""
    load = Load(clips=clips([], PROMPT_SECONDS), url=url, rate=rate, duration=seconds, seconds=MADE_SECONDS,
                stream=True, response_format="pcm", seed=SEED)  # fmt: skip
    found = summary(asyncio.run(put_load(load)), 0.1)
    keys = ("requests", "answered", "overloaded", "errors", "underruns", "late_to_leave_seconds")
    waits = {name: found["figures"][name] for name in ("first_audio_seconds", "total_seconds")}
    return {"rate": rate, **{key: found[key] for key in keys}, **waits}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which the requests of a load leave")
    parser.add_argument("--out", type=Path, default=RESULTS / "offered_load.json")
    arguments = parser.parse_args()
    machine = Machine(threads=default_threads(), queue=Settings.model_fields["queue"].default)
    at = conditions() | {
        "workers": machine.threads, "slots": machine.slots, "queue": machine.queue, "prompt_seconds": PROMPT_SECONDS,
        "made_seconds": MADE_SECONDS, "load_seconds": arguments.seconds, "seed": SEED,
    }  # fmt: skip
    console.print(at)
    loads = []
    flags = ("--slots", str(machine.slots), "--queue", str(machine.queue), "--threads", str(machine.threads))
    with serving(arguments.bundle, *flags) as server:
        warm = Load(clips=clips([], PROMPT_SECONDS), url=server.url, requests=4, seconds=1.0, stream=True,
                    response_format="pcm")  # fmt: skip
        asyncio.run(put_load(replace(warm, concurrency=2)))
        for rate in arguments.rates:
            loads.append(offered(server.url, rate, arguments.seconds))
            one = loads[-1]
            first = one["first_audio_seconds"]
            print(f"{rate:g} a second: first audio p50 {first['p50'] * 1e3:.0f} ms, p95 {first['p95'] * 1e3:.0f} ms; "
                  f"{one['underruns']} ran dry, {one['overloaded']} refused, errors {one['errors']}")  # fmt: skip
    write(arguments.out, at, {"loads": loads})


if __name__ == "__main__":
    main()
