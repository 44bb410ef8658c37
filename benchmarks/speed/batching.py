"""16 requests at once against 16 in turn, over HTTP, and against a server that takes one request at a time.

    python -m benchmarks.speed.batching                    # about 2 minutes

Each asks for 5 s of audio after a prompt of 3 s. The settings take turns; the figure is the seconds until all are
answered.
"""

import argparse
import asyncio
from contextlib import ExitStack
from pathlib import Path

from app.cli.bench import clips
from app.client.load_generator import Load, put_load
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import serving
from benchmarks.speed.timing import conditions, console, spread, write

REQUESTS = 16
PROMPT_SECONDS = 3.0
ONCE, TURN, SINGLE = "all at once", "in turn", "all at once, one request at a time (--slots 1)"


def seconds_for(url: str, at_once: int, made_seconds: float, seed: int) -> float:
    """How long all requests take. Raises RuntimeError when one fails."""
    load = Load(clips=clips([], PROMPT_SECONDS), url=url, concurrency=at_once, requests=REQUESTS,
                seconds=made_seconds, response_format="pcm", seed=seed)  # fmt: skip
    report = asyncio.run(put_load(load))
    failed = [one.error for one in report.outcomes if one.error]
    if failed:
        raise RuntimeError(f"requests failed: {failed}")
    return report.seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of audio for each request")
    parser.add_argument("--out", type=Path, default=RESULTS / "batching.json")
    arguments = parser.parse_args()
    made_on = conditions() | {"requests": REQUESTS, "made_seconds": arguments.seconds, "prompt_seconds": PROMPT_SECONDS}
    console.print(made_on)
    found: dict[str, list[float]] = {ONCE: [], TURN: [], SINGLE: []}
    with ExitStack() as running:
        many = running.enter_context(serving(arguments.bundle))
        one = running.enter_context(serving(arguments.bundle, "--slots", "1"))
        ways = {ONCE: (many.url, REQUESTS), TURN: (many.url, 1), SINGLE: (one.url, REQUESTS)}
        for turn in range(arguments.turns + 1):
            for name, (url, at_once) in ways.items():
                took = seconds_for(url, at_once, arguments.seconds if turn else 0.5, seed=100 * turn)
                if turn:  # the first turn warms up
                    found[name].append(took)
    figures = {name: spread(values) for name, values in found.items()}
    ratios = {name: figures[name]["median"] / figures[ONCE]["median"] for name in (TURN, SINGLE)}
    for name, figure in figures.items():
        made = REQUESTS * arguments.seconds / figure["median"]
        print(f"{name:48} {figure['median']:.2f} s, {made:.1f} s of audio a second")
    print({name: round(ratio, 2) for name, ratio in ratios.items()})
    write(arguments.out, made_on, {"seconds": figures, "times_as_fast_at_once": ratios})


if __name__ == "__main__":
    main()
