"""A corpus over Ray Data against `whisper-gpt score` by itself, and how many rows a second one driver takes.

    python -m benchmarks.speed.ray_corpus            # some minutes (Linux, the extra ray)

Whole passes in turns, each the real command; the cluster, of one node on this machine, is there before. The driver's
rate is that of clips which name no file: each goes to an actor and comes back as a row, and nothing is computed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile

from app.cli.bench import made_up_clip
from app.corpora.clips import Clip
from app.corpora.ray_workers import RayWorkers
from app.corpora.scoring import Job
from app.scores.schemas import ScoreForm
from benchmarks.common import DEFAULT, RESULTS, ROOT
from benchmarks.speed.corpus_throughput import COMMAND
from benchmarks.speed.timing import Clocks, clocks, conditions, console, in_turns, since, spread, write

FAULTS = 20_000


@contextmanager
def one_node(cpus: int) -> Iterator[str]:
    """A Ray of this machine's own; its address."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0",
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # fmt: skip
    found = ray.init(
        "local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000
    )
    try:
        yield str(found.address_info["gcs_address"])
    finally:
        ray.shutdown()


def pass_over(folder: Path, bundle: Path, options: list[str], audio_seconds: float, address: str) -> Clocks:
    """Wall clock and the command's own processor time of a second of audio."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "scores.jsonl"
        begin = clocks()
        subprocess.run(
            [sys.executable, "-c", COMMAND, "score", str(folder), "-o", str(out), "--bundle", str(bundle), *options],
            check=True, capture_output=True, env=os.environ | {"RAY_ADDRESS": address},
        )  # fmt: skip
        wall, own = since(begin)
        rows = out.read_text().count("\n")
    assert rows == len(list(folder.iterdir())), rows
    return wall / audio_seconds, own / audio_seconds


def driver_rows(bundle: Path) -> float:
    """Rows a second that come back when nothing is to be computed."""
    clips = [Clip(f"m:{number}", "m", fault="names no file") for number in range(FAULTS)]
    rows = RayWorkers(Job(bundle, "cpu", None, 1, ScoreForm()), 1).rows(clips)
    next(rows)  # the actor has its model
    begin = time.monotonic()
    assert sum(1 for _ in rows) == FAULTS - 1
    return FAULTS / (time.monotonic() - begin)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "ray_corpus.json")
    arguments = parser.parse_args()
    import ray

    made_on = conditions() | {
        "bundle": arguments.bundle.name, "clips": arguments.clips, "clip_seconds": arguments.seconds,
        "turns": arguments.turns, "ray": ray.__version__,
    }  # fmt: skip
    console.print(made_on)
    with tempfile.TemporaryDirectory() as place, one_node(2) as address:
        folder = Path(place)
        for number in range(arguments.clips):
            soundfile.write(folder / f"{number}.flac", made_up_clip(arguments.seconds), 24_000)
        audio = arguments.clips * arguments.seconds
        ways = {
            "one process": [], "two processes": ["--processes", "2"],
            "one actor": ["--ray", "--processes", "1"], "two actors": ["--ray", "--processes", "2"],
        }  # fmt: skip
        found = in_turns(
            {
                name: lambda options=options: pass_over(folder, arguments.bundle, options, audio, address)  # type: ignore[misc]
                for name, options in ways.items()
            },
            arguments.turns,
        )
        rows = driver_rows(arguments.bundle)
    figures = {name: spread([1 / wall for wall, _ in turns]) for name, turns in found.items()}
    for name, figure in figures.items():
        print(f"{name:14} {figure['median']:6.1f} x real time ({figure['low']:.1f} to {figure['high']:.1f})")
    print(f"a driver takes {rows:.0f} rows a second")
    write(arguments.out, made_on, {"times_real_time": figures, "driver_rows_a_second": rows})


if __name__ == "__main__":
    main()
