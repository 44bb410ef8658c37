"""What a request costs one machine, from the JSON of the speed benchmarks: nothing here is typed.

Processor seconds of one core: of a step by its rows, of reading a prompt by its length, and of all else that a request
brings (HTTP, decoding, the client). How much longer all takes in company is fitted (`compare.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.engine.sequence import FIRST_CHUNK_FRAMES

Points = tuple[tuple[float, float], ...]


def line(points: Points, at: float) -> float:
    """Between measured points straight; beyond the last on as between the last two; below the first it is the first."""
    xs, ys = zip(*points, strict=True)
    if at > xs[-1]:
        return float(ys[-1] + (at - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))
    return float(np.interp(at, xs, ys))


@dataclass(frozen=True)
class Costs:
    """Seconds of one core."""

    step: Points  # by rows of one decode worker, while the other workers step as many
    prefill: Points  # by seconds of prompt
    request: float
    company: float  # times as long as alone all takes while two or more threads compute

    def step_seconds(self, rows: int) -> float:
        return line(self.step, rows)

    def prefill_seconds(self, prompt_seconds: float) -> float:
        """Of a prompt; one that is longer than those measured costs as much a second as between them."""
        (low, at_low), (high, at_high) = self.prefill[0], self.prefill[-1]
        return max(0.0, at_low + (prompt_seconds - low) * (at_high - at_low) / (high - low))

    def to_dict(self) -> dict[str, Any]:
        return {"step_ms": [[rows, seconds * 1e3] for rows, seconds in self.step],
                "prefill_ms": [[seconds, took * 1e3] for seconds, took in self.prefill],
                "request_ms": self.request * 1e3, "company": self.company}  # fmt: skip


def measured(results: Path, company: float) -> Costs:
    """The costs that stand in the folder of results, with the one that no benchmark measures by itself.

    The step is of `streams.json` (workers alone, which all step at the same time), the prompts of `closed_loop.json`.
    What a request costs beside them is what `first_audio.json` found more than these: alone, by the shorter prompt.
    """
    names = ("streams", "closed_loop", "first_audio")
    read = {name: json.loads((results / f"{name}.json").read_text()) for name in names}
    step: dict[float, float] = {}
    for level in read["streams"]["workers"]:
        rows = level["streams"] / level["workers"]
        step[rows] = max(step.get(rows, 0.0), level["step_ms"]["p50"] / 1e3)
    prompts = {
        float(name.removeprefix("prompt of ").removesuffix(" s")): found["wall"]["median"] / 1e3
        for name, found in read["closed_loop"]["milliseconds"].items()
        if name.startswith("prompt of ")
    }
    points = tuple(sorted(step.items()))
    shortest = min(prompts)
    heard = read["first_audio"]["alone"][f"{shortest:g} s prompt"]["first_audio_seconds"]["p50"]
    request = heard - prompts[shortest] - FIRST_CHUNK_FRAMES * points[0][1]
    assert request > 0, "the first audio comes sooner than its parts together"
    return Costs(points, tuple(sorted(prompts.items())), request, company)
