"""The simulation beside real runs, and what it then says of loads and numbers that were not run.

    python -m benchmarks.scaling.offered_load     # the real runs, on an idle machine: about 6 minutes
    python -m benchmarks.scaling.compare          # a minute or two of one core

One figure cannot be measured by itself: how much slower all is in company. It is fitted to two levels of
`streams.json`; all other levels and loads are predictions, and `checked` tells how far off each is.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.client.load_generator import Load, percentiles, schedule
from benchmarks.common import RESULTS, rounded
from benchmarks.report.pages import loaded
from benchmarks.scaling.costs import Costs, measured
from benchmarks.scaling.plan import capacity, load_curve
from benchmarks.scaling.simulation import Asked, Heard, Machine, simulate
from benchmarks.speed.timing import conditions, console, write

FITTED_LEVELS = (32, 48)  # near the limit, where it matters most
COMPANIES = [1 + step / 50 for step in range(21)]  # 1 to 1.4
WITHIN = 0.2
SHOWN = ("p50", "p90", "p95")


@dataclass(frozen=True)
class RealRun:
    """A run of a real server: what was asked of it, and what its listeners got."""

    name: str
    machine: Machine
    asked: Sequence[Asked]
    real: dict[str, float]  # seconds until the first audio, by percentile

    def simulated(self, costs: Costs) -> dict[str, float]:
        return first_audio(simulate(self.machine, costs, self.asked))


def first_audio(heard: Sequence[Heard]) -> dict[str, float]:
    """Percentiles, as the load generator has them, of those who were served."""
    values = [one.first_audio for one in heard if not one.refused]
    found = percentiles(values) or {}
    return {name: found[name] for name in SHOWN}


def poisson(rate: float, seconds: float, prompt: float, made: float, seed: int = 1) -> list[Asked]:
    """The very arrivals of the load generator."""
    load = Load(clips=[], url="", rate=rate, duration=seconds, seed=seed)
    return [Asked(at, prompt, made) for at in schedule(load)]


def of_streams(report: dict[str, Any]) -> Iterator[RealRun]:
    """The levels of `streams.json` over HTTP: one after the other, in equal steps."""
    at = report["conditions"]
    most = max(level["streams"] for level in report["http"])
    machine = Machine(at["cores"], at["workers"], most, most)
    for level in report["http"]:
        count = level["streams"]
        gap = at["arrive_seconds"] / count
        asked = [Asked(index * gap, at["prompt_seconds"], at["stream_seconds"]) for index in range(count)]
        yield RealRun(f"streams, {count}", machine, asked, {name: level["first_audio_seconds"][name] for name in SHOWN})


def of_first_audio(report: dict[str, Any]) -> Iterator[RealRun]:
    """The loads of `first_audio.json`: as it comes, and with one slot."""
    at = report["conditions"]
    for name, found in report["load"].items():
        slots = 1 if "one request" in name else Machine.slots
        machine = Machine(at["cores"], 2, slots, 64)
        asked = poisson(at["rate"], at["load_seconds"], 3.0, at["made_seconds"])
        real = {key: found["figures"]["first_audio_seconds"][key] for key in SHOWN}
        yield RealRun(f"{at['rate']:g} a second, {name}", machine, asked, real)


def of_offered_load(report: dict[str, Any]) -> Iterator[RealRun]:
    """The loads of `offered_load.json`."""
    at = report["conditions"]
    machine = Machine(at["cores"], at["workers"], at["slots"], at["queue"])
    for load in report["loads"]:
        asked = poisson(load["rate"], at["load_seconds"], at["prompt_seconds"], at["made_seconds"], at["seed"])
        real = {key: load["first_audio_seconds"][key] for key in SHOWN}
        yield RealRun(f"offered, {load['rate']:g} a second", machine, asked, real)


def distance(runs: Sequence[RealRun], costs: Costs) -> float:
    """Mean of |log(simulated / real)|."""
    found = [(run.simulated(costs), run.real) for run in runs]
    return float(np.mean([abs(math.log(simulated[name] / real[name])) for simulated, real in found for name in SHOWN]))


def fitted(results: Path, runs: Sequence[RealRun]) -> Costs:
    """The costs with which these runs come out best."""
    return min((measured(results, company) for company in COMPANIES), key=lambda costs: distance(runs, costs))


def compared(run: RealRun, costs: Costs, fit: bool) -> dict[str, Any]:
    """One run beside the other."""
    simulated = run.simulated(costs)
    ratios = {name: simulated[name] / run.real[name] for name in SHOWN}
    held = all(abs(ratio - 1) <= WITHIN for ratio in ratios.values())
    return {"run": run.name, "fitted": fit, "requests": len(run.asked), "real": run.real, "simulated": simulated,
            "simulated_over_real": ratios, "holds": held}  # fmt: skip


def main() -> None:
    """Fit, compare, plan, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    readers = {"streams": of_streams, "first_audio": of_first_audio, "offered_load": of_offered_load}
    reports = {name: report for name in readers if (report := loaded(arguments.results, name)) is not None}
    runs = [run for name, report in reports.items() for run in readers[name](report)]
    levels = {f"streams, {count}" for count in FITTED_LEVELS}
    costs = fitted(arguments.results, [run for run in runs if run.name in levels])
    console.print(costs.to_dict())
    checked = [compared(run, costs, run.name in levels) for run in runs]
    for one in checked:
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in one["simulated_over_real"].items())
        print(f"{one['run']:40} simulated / real: {ratios}{' (fitted)' if one['fitted'] else ''}")
    of = {name: report["conditions"] for name, report in reports.items()}
    at = conditions() | {"within": WITHIN, "real_runs": {name: {"commit": c["commit"], "load": c["load"]}
                                                         for name, c in of.items()}}  # fmt: skip
    body = {"costs": costs.to_dict(), "checked": checked, "load_curve": load_curve(costs), "capacity": capacity(costs)}
    write(arguments.out, at, rounded(body))


if __name__ == "__main__":
    main()
