"""Does memory grow with what is made? One stream of 10 minutes from a server, its memory read all the while.

    python -m benchmarks.speed.memory                      # about 1 minute (Linux)

The slope is a straight line through the readings after the first ``SETTLE`` of the stream. Level and position must
not drift either: tests/model has the laws (ring cache = whole context at any length), this looks at the server as a
whole.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from app.cli.bench import clips
from app.client.load_generator import Load, Report, put_load
from app.server.memory import GIVE_BACK_SECONDS
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import Server, serving
from benchmarks.speed.timing import conditions, console, write
from benchmarks.speed.watching import Watch

SETTLE = 0.2  # share of the stream that is left out
MIB = 2.0**20


def watch_memory(server: Server, pause: float) -> Watch[tuple[float, float]]:
    """Reads the seconds of audio made from now on, and the server's memory in MiB."""
    before = server.metric("generated_audio_seconds_total")

    def look() -> tuple[float, float]:
        return server.metric("generated_audio_seconds_total") - before, server.resident_bytes() / MIB

    return Watch(look, pause)


def slope(readings: list[tuple[float, float]]) -> dict[str, float]:
    """MiB for each minute of audio, by least squares, and the lowest and highest reading; of two readings at least."""
    whole = max(made for made, _ in readings)
    kept = [(made, size) for made, size in readings if made >= SETTLE * whole]
    made, sizes = np.array(kept).T
    rise, _ = np.polyfit(made / 60, sizes, 1)
    return {
        "mib_a_minute": float(rise),
        "low_mib": float(sizes.min()),
        "high_mib": float(sizes.max()),
        "readings": len(kept),
    }


async def streamed(server: Server, streams: int, seconds: float) -> Report:
    load = Load(
        clips=clips([], 3.0), url=server.url, concurrency=streams, requests=streams, seconds=seconds, stream=True,
        response_format="pcm",
    )  # fmt: skip
    return await put_load(load)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rest", type=float, default=GIVE_BACK_SECONDS + 3.0, help="seconds after the warm-up")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    made_on = conditions() | {"stream_seconds": arguments.seconds, "rest_seconds": arguments.rest}
    console.print(made_on)
    limits = ("--max-seconds", str(arguments.seconds), "--timeout-seconds", "3600")
    with serving(arguments.bundle, *limits) as server:
        asyncio.run(streamed(server, 2, min(30.0, arguments.seconds)))  # what a server takes once,
        time.sleep(arguments.rest)  # and what it gives back of it: that is no slope of the stream's
        with watch_memory(server, arguments.seconds / 2400) as watch:  # hundreds of readings, however fast it is
            report = asyncio.run(streamed(server, 1, arguments.seconds))
    one = report.outcomes[0]
    assert one.error is None, one.error
    found: dict[str, Any] = slope(watch.readings) | {
        "audio_seconds": one.audio_seconds,
        "times_real_time": one.audio_seconds / one.total,
        "buffer_needed_seconds": one.short,
    }
    print(
        f"{found['audio_seconds']:.0f} s of audio in {one.total:.0f} s: {found['mib_a_minute']:+.3f} MiB a minute of "
        f"audio, {found['low_mib']:.0f} to {found['high_mib']:.0f} MiB"
    )
    write(arguments.out, made_on, found)


if __name__ == "__main__":
    main()
