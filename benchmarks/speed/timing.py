"""How the speed benchmarks measure: contenders take turns in one process, and each turn has two clocks.

``wall`` is what a user waits. ``processor`` is the time in which this thread really computed: on a machine that is
shared, the two differ by what other programs took. On an idle core they are equal, as long as nothing waits.
"""

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import DEFAULT, RESULTS, ROOT, rounded
from model.files import put_json

console = Console(stderr=True)
Clocks = tuple[float, float]  # wall and processor seconds


def clocks() -> Clocks:
    return time.perf_counter(), time.thread_time()


def since(begin: Clocks) -> Clocks:
    """Seconds of both clocks from ``begin`` on."""
    wall, processor = clocks()
    return wall - begin[0], processor - begin[1]


@dataclass(frozen=True)
class Figure:
    """What several turns gave: the median, the lowest and the highest of each clock."""

    wall: dict[str, float]
    processor: dict[str, float]

    @classmethod
    def of(cls, turns: list[Clocks], scale: float = 1.0) -> "Figure":
        """The figures of turns, in seconds times ``scale``."""
        wall, processor = ([one[clock] * scale for one in turns] for clock in (0, 1))
        return cls(spread(wall), spread(processor))

    def to_dict(self) -> dict[str, Any]:
        return {"wall": self.wall, "processor": self.processor}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def in_turns(contenders: Mapping[str, Callable[[], Clocks]], turns: int) -> dict[str, list[Clocks]]:
    """Each contender once, then each again, ``turns`` times after a first turn that warms up: ABCABC...

    So a slow minute of the machine is shared by all of them. Each returns its own clocks, for a unit of its own choice.
    """
    found: dict[str, list[Clocks]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        with console.status(f"turn {turn} of {turns}"):
            for name, run in contenders.items():
                one = run()
                if turn:
                    found[name].append(one)
    return found


def conditions() -> dict[str, Any]:
    """What the figures were made on and with."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # of the last minute: above 1 a thread, something else ran
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def processor_name() -> str:
    """As the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The commit of this code; with a plus when files that it runs were changed since. None outside of a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "app", "model", "weights"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def step_arguments(description: str | None, out: str) -> argparse.Namespace:
    """What a benchmark of steps is asked for, its figures going to ``out`` in the folder of results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / out)
    return parser.parse_args()


def write(path: Path, found_in: dict[str, Any], body: dict[str, Any]) -> None:
    """The figures with their conditions, as `conditions` gave them before the measurement, in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    put_json(path, rounded({"conditions": found_in, **body}, 5), indent=1)
    console.print(f"wrote {path}")
