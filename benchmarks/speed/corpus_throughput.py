"""How fast a corpus is scored: `whisper-gpt score FOLDER` in one process and in two.

    python -m benchmarks.speed.corpus_throughput           # about 5 minutes

Clips of made-up sound, whole passes in turns, each the real command with its start and its file of rows.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

from app.cli.bench import made_up_clip
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.timing import Clocks, clocks, conditions, console, in_turns, since, spread, write

COMMAND = "import sys; from app.cli.main import main; sys.argv[0] = 'whisper-gpt'; main()"


def processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pass_over(folder: Path, bundle: Path, processes: int, audio_seconds: float) -> Clocks:
    """Wall clock and processor time of one second of audio."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "scores.jsonl"
        options = ["score", folder, "-o", out, "--processes", processes, "--bundle", bundle]
        before, begin = processor_seconds(), clocks()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-c", COMMAND, *map(str, options)], check=True, capture_output=True, env=environment
        )
        wall, _ = since(begin)
        rows = out.read_text().count("\n")
    assert rows == len(list(folder.iterdir())), rows
    return wall / audio_seconds, (processor_seconds() - before) / audio_seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "corpus_throughput.json")
    arguments = parser.parse_args()
    made_on = conditions() | {
        "bundle": arguments.bundle.name, "clips": arguments.clips, "clip_seconds": arguments.seconds,
        "turns": arguments.turns,
    }  # fmt: skip
    console.print(made_on)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number in range(arguments.clips):
            soundfile.write(folder / f"{number}.flac", made_up_clip(arguments.seconds), 24_000)
        audio = arguments.clips * arguments.seconds
        ways = {
            f"{count} process{'es' * (count > 1)}": lambda count=count: pass_over(
                folder, arguments.bundle, count, audio
            )
            for count in (1, 2)
        }
        found = in_turns(ways, arguments.turns)
    figures = {name: spread([1 / wall for wall, _ in turns]) for name, turns in found.items()}
    by_processor = {name: spread([1 / processor for _, processor in turns]) for name, turns in found.items()}
    for name, figure in figures.items():
        print(f"{name:12} {figure['median']:6.1f} x real time ({figure['low']:.1f} to {figure['high']:.1f})")
    write(arguments.out, made_on, {"times_real_time": figures, "of_processor_time": by_processor})


if __name__ == "__main__":
    main()
