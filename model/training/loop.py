"""What every training command shares: a run folder with a checkpoint, a JSON-lines log and a plot, and a progress bar.

A run that was cut off and resumed gives the same weights as one that was not: all randomness of a step comes from
``step_rng(seed, step)``, so there is no generator state to keep, and the checkpoint holds everything else.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.files import put_json, whole_file
from model.training.progress import RateColumn

State = dict[str, Any]


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one training step."""
    return np.random.default_rng([seed, step])


def cosine_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.02) -> float:
    """Learning rate at ``step``: linear warm-up, then a cosine to ``floor * peak`` at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def machine() -> dict[str, Any]:
    """The conditions that a figure was made under."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def filled(settings: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Settings with what they lack of ``earlier``, in the dictionaries within them, too; those they lack stay away."""
    made = dict(settings)
    for name, value in earlier.items():
        if isinstance(value, dict):
            if isinstance(made.get(name), dict):
                made[name] = filled(made[name], value)
        else:
            made.setdefault(name, value)
    return made


def read_log(folder: Path) -> list[dict[str, Any]]:
    """A run's log, one entry a step: what a resumed run logged again replaces what the lost part had logged."""
    log = folder / "log.jsonl"
    if not log.exists():
        return []
    entries = []
    for line in log.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # cut off by a kill, perhaps with the next entry on the same line
            entries.append(json.loads(line))
    return [by_step for _, by_step in sorted({entry["step"]: entry for entry in entries}.items())]


class Run:
    """A training run in a folder: ``checkpoint.pt``, ``log.jsonl``, ``loss.png``."""

    def __init__(self, folder: Path, settings: dict[str, Any], earlier: dict[str, Any] | None = None) -> None:
        """Opens or starts a run. Raises ValueError when the folder holds a run with other settings.

        earlier: for settings that came later, what a run was made with that does not name them (`configs.before`).
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "settings.json"
        if known.exists():
            before = filled(json.loads(known.read_text())["settings"], earlier or {})
            changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            if changed:
                raise ValueError(f"{folder} holds a run with other settings ({', '.join(changed)}); choose another")
        else:
            put_json(known, {"settings": settings, "machine": machine()}, indent=1)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self, state: State) -> None:
        """Replaces the checkpoint in one move, so that a kill at any moment leaves a whole one."""
        with whole_file(self.checkpoint) as part:
            torch.save(state, part)

    def load(self) -> State | None:
        """The last checkpoint, on the CPU, or None."""
        if not self.checkpoint.exists():
            return None
        state: State = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        return state

    def log(self, **values: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as out:
            out.write(json.dumps(values) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The log, one entry a step."""
        return read_log(self.folder)

    def plot(self) -> Path | None:
        """Draws every logged figure over the steps into ``loss.png``; None without matplotlib (extra `train`)."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return None
        history = self.history()
        names = sorted({name for entry in history for name in entry} - {"step", "seconds", "rate"})
        if not names:
            return None
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            axes.plot(*zip(*points, strict=True))
            axes.set_title(name)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
        path = self.folder / "loss.png"
        with whole_file(path) as part:
            figure.savefig(part, dpi=90, format="png")
        return path

    def steps(
        self,
        first: int,
        last: int,
        step: Callable[[int], dict[str, float]],
        state: Callable[[], State],
        *,
        validate: Callable[[], dict[str, float]] | None = None,
        validate_every: int = 500,
        log_every: int = 50,
        save_seconds: float = 120.0,
    ) -> Iterator[int]:
        """Runs steps ``first`` to ``last - 1`` with log, validation, checkpoints and a progress bar; yields each step.

        ``step(i)`` trains and returns figures; their mean over ``log_every`` steps is logged.
        """
        sums: dict[str, list[float]] = {}
        saved = started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), RateColumn(),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, refresh_per_second=1) as bar:
            task = bar.add_task("training", total=last, completed=first)
            for index in range(first, last):
                for name, value in step(index).items():
                    sums.setdefault(name, []).append(value)
                done = index + 1
                entry: dict[str, float] = {}
                if done % log_every == 0 or done == last:
                    entry = {name: sum(values) / len(values) for name, values in sums.items()}
                    sums = {}
                    bar.update(task, description=f"loss {entry.get('loss', float('nan')):.4f}")
                if validate is not None and (done % validate_every == 0 or done == last):
                    entry |= validate()
                if entry:
                    self.log(step=done, seconds=round(time.monotonic() - started, 1), **entry)
                bar.update(task, completed=done)
                if time.monotonic() - saved > save_seconds or done == last:
                    self.save(state() | {"step": done})
                    self.plot()
                    saved = time.monotonic()
                yield done
