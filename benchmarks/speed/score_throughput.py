"""How fast clips are scored: seconds of audio in a second, in this process and over HTTP.

    python -m benchmarks.speed.score_throughput            # about 1 minute

Clips of 30 s, whole passes in turns: the model alone on one thread, a server with one client, and with two.
"""

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

import torch

from app.cli.bench import clips, made_up_clip
from app.client.load_generator import Load, put_load
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import serving
from benchmarks.speed.timing import Clocks, clocks, conditions, console, in_turns, since, spread, write
from model.checkpoint import load_bundle
from model.inference.scoring import score

HERE, ONE, TWO = "model.inference.scoring, one thread", "POST /score, one client", "POST /score, two clients"


def asked(url: str, clip_seconds: float, clients: int) -> Callable[[], Clocks]:
    """A pass of two requests a client; the wall clock of one second of audio."""
    load = Load(clips=clips([], clip_seconds), url=url, route="score", concurrency=clients, requests=2 * clients)

    def run() -> Clocks:
        report = asyncio.run(put_load(load))
        failed = [one.error for one in report.outcomes if one.error]
        assert not failed, failed
        audio = sum(one.audio_seconds for one in report.outcomes)
        return report.seconds / audio, 0.0

    return run


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a clip")
    parser.add_argument("--out", type=Path, default=RESULTS / "score_throughput.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    made_on = conditions() | {"bundle": bundle.name, "clip_seconds": arguments.seconds, "turns": arguments.turns}
    console.print(made_on)
    clip = torch.from_numpy(made_up_clip(arguments.seconds))

    def here() -> Clocks:
        begin = clocks()
        score(bundle, clip)
        wall, processor = since(begin)
        return wall / arguments.seconds, processor / arguments.seconds

    with serving(arguments.bundle) as server:
        ways = {
            HERE: here,
            ONE: asked(server.url, arguments.seconds, 1),
            TWO: asked(server.url, arguments.seconds, 2),
        }
        found = in_turns(ways, arguments.turns)
    figures = {name: spread([1 / wall for wall, _ in turns]) for name, turns in found.items()}
    by_processor = spread([1 / processor for _, processor in found[HERE]])
    for name, figure in figures.items():
        print(f"{name:28} {figure['median']:6.1f} x real time ({figure['low']:.1f} to {figure['high']:.1f})")
    write(arguments.out, made_on, {"times_real_time": figures, "of_processor_time": {HERE: by_processor}})


if __name__ == "__main__":
    main()
