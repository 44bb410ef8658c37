"""What one compiled cache for many processors would cost: the step as compiled for this one, and for a class of them.

    python -m benchmarks.speed.portable                    # about 6 minutes: each kind is compiled anew

Numba compiles for what ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` say, and looks for code on disk by the same words:
with the levels of x86-64 (v3: AVX2, v4: AVX-512) one cache would serve every machine of a level. Each kind is a process
of its own with a cache of its own; they take turns, one of them working at a time, and must make the same bits.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.timing import Clocks, Figure, clocks, conditions, console, in_turns, since, write

V3 = "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+crc32,+cx16,+cx8,+f16c,+fma,+fxsr,+lzcnt,+mmx,+movbe,+popcnt,+sahf,+sse," \
     "+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave"  # fmt: skip
V4 = V3 + ",+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl"
KINDS = {
    "this processor": {},
    "x86-64-v4": {"NUMBA_CPU_NAME": "x86-64-v4", "NUMBA_CPU_FEATURES": V4},
    "x86-64-v4, 512 bits": {"NUMBA_CPU_NAME": "x86-64-v4", "NUMBA_CPU_FEATURES": V4 + ",-prefer-256-bit"},
    "x86-64-v3": {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": V3},
}  # fmt: skip


def child(bundle: Path, steps: int) -> None:
    """Waits for numbers of rows, one a line, and answers each with both clocks of a step and what the rows made."""
    from benchmarks.speed.baselines import filled
    from model.checkpoint import load_bundle
    from model.inference.numba_backend.backend import NumbaBackend

    torch.set_num_threads(1)
    loaded = load_bundle(bundle)
    NumbaBackend(loaded, 1)  # compiles
    print("ready", flush=True)
    for line in sys.stdin:
        rows = int(line)
        slots = filled(NumbaBackend(loaded, rows), loaded)
        made, every = hashlib.sha256(), list(range(rows))
        slots.step(every)
        begin = clocks()
        frames = [slots.step(every) for _ in range(steps)]
        wall, processor = since(begin)
        for frame in frames:
            for part in (frame.codes, frame.logprobs, frame.fine_logprobs, frame.samples, frame.mel):
                made.update(part.tobytes())
        print(wall / steps, processor / steps, made.hexdigest(), flush=True)


class Process:
    """A process of one kind; a call is a turn."""

    def __init__(self, kind: dict[str, str], cache: Path, bundle: Path, steps: int) -> None:
        environment = os.environ | kind | {"NUMBA_CACHE_DIR": str(cache)}
        command = [sys.executable, "-m", "benchmarks.speed.portable", "--child", "--bundle", str(bundle)]
        self._process = subprocess.Popen(
            [*command, "--steps", str(steps)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == ["ready"]
        self.made: dict[int, str] = {}

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()

    def turn(self, rows: int) -> Clocks:
        """The clocks of a step of so many rows."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rows}\n")
        self._process.stdin.flush()
        wall, processor, self.made[rows] = self._answer()
        return float(wall), float(processor)

    def close(self) -> None:
        self._process.communicate()


def measure(processes: dict[str, Process], rows: int, turns: int) -> dict[str, Any]:
    """One number of rows."""
    ways = {name: lambda process=process: process.turn(rows) for name, process in processes.items()}
    figures = {name: Figure.of(times, 1e3) for name, times in in_turns(ways, turns).items()}
    native, *_ = figures
    found: dict[str, Any] = {"milliseconds_a_step": {}, "times_this_processor": {}, "same_bits": {}}
    for name, figure in figures.items():
        found["milliseconds_a_step"][name] = figure.to_dict()
        ratio = figure.processor["median"] / figures[native].processor["median"]
        same = processes[name].made[rows] == processes[native].made[rows]
        found["times_this_processor"][name], found["same_bits"][name] = ratio, same
        print(f"{rows:3} rows  {name:20} {figure.processor['median']:8.3f} ms of processor, {ratio:.3f}, bits {same}")
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "portable.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.bundle, arguments.steps)
        return
    torch.set_num_threads(1)
    made_on = conditions() | {"steps": arguments.steps, "turns": arguments.turns, "kinds": KINDS}
    console.print(made_on)
    processes: dict[str, Process] = {}
    with tempfile.TemporaryDirectory() as caches:
        for name, kind in KINDS.items():
            with console.status(f"{name}: compiling"):
                processes[name] = Process(
                    kind, Path(caches) / name.replace(" ", "-"), arguments.bundle, arguments.steps
                )
        found = {str(rows): measure(processes, rows, arguments.turns) for rows in arguments.rows}
        for process in processes.values():
            process.close()
    write(arguments.out, made_on, {"rows": found})


if __name__ == "__main__":
    main()
