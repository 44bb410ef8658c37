"""How long a step takes, side by side with what a user would pick instead, and what the machine would allow.

    python -m benchmarks.speed.step                       # about 4 minutes, one thread
    python -m benchmarks.speed.step --turns 1 --steps 8 --rows 1 4 --out /tmp/step.json

Contenders take turns in one process (`benchmarks/speed/timing.py`); each has a prompt of 3 s and makes ``--steps``
tokens, or frames, of every row. transformers is needed: ``pip install -e ".[bench]"``.
"""

from typing import Any

import torch

from benchmarks.speed.baselines import (
    PROMPT_POSITIONS,
    Run,
    bundle_of,
    closed_loop,
    hugging_face,
    token_step,
    torch_token_step,
    uncached,
)
from benchmarks.speed.roofline import Roof, frame_work, token_work
from benchmarks.speed.timing import Figure, conditions, console, in_turns, step_arguments, write
from model.checkpoint import Bundle, load_bundle
from model.lm.config import PRESETS

OURS = "ours, gpt-s"
HYBRID, LARGE = "ours, hybrid-4m", "ours, gpt-l"
FRAME = "ours, hybrid-4m, closed loop with {} codebooks"
TORCH = "ours in torch, gpt-s"
DYNAMIC, STATIC, UNCACHED = "Hugging Face generate", "Hugging Face generate, static cache", "uncached loop, gpt-s"
UNCACHED_STEPS = 2


def contenders(base: Bundle, rows: int, steps: int) -> dict[str, Run]:
    """All of them, for so many rows."""
    small = bundle_of("gpt-s", base)
    return {
        DYNAMIC: hugging_face(PRESETS["gpt-s"], rows, steps, "dynamic"),
        STATIC: hugging_face(PRESETS["gpt-s"], rows, steps, "static"),
        OURS: token_step(small, rows, steps),
        TORCH: torch_token_step(small, rows, steps),
        HYBRID: token_step(bundle_of("hybrid-4m", base), rows, steps),
        LARGE: token_step(bundle_of("gpt-l", base), rows, steps),
        FRAME.format(8): closed_loop(base, rows, steps, "compiled", 8),
        UNCACHED: uncached(small, rows, UNCACHED_STEPS),
    }


def limits(base: Bundle, roof: Roof, rows: int, steps: int) -> dict[str, dict[str, float]]:
    """What each of ours could take at best, in the middle of its run."""
    positions = PROMPT_POSITIONS + steps // 2
    works = {
        OURS: token_work(PRESETS["gpt-s"], rows, positions),
        HYBRID: token_work(base.lm.config, rows, positions),
        LARGE: token_work(PRESETS["gpt-l"], rows, positions),
        FRAME.format(8): frame_work(base, rows, positions, 8),
    }
    return {name: roof.limit(work) for name, work in works.items()}


def ratios(figures: dict[str, Figure]) -> dict[str, dict[str, float]]:
    """How many times as long each takes as our token model, and `gpt-l` as the hybrid, by both clocks' medians."""

    def ratio(one: str, other: str) -> dict[str, float]:
        a, b = figures[one], figures[other]
        return {clock: getattr(a, clock)["median"] / getattr(b, clock)["median"] for clock in ("wall", "processor")}

    found = {f"{name} / {OURS}": ratio(name, OURS) for name in (DYNAMIC, STATIC, UNCACHED, TORCH)}
    return found | {f"{name} / {HYBRID}": ratio(name, HYBRID) for name in (DYNAMIC, LARGE)}


def measure(base: Bundle, rows: int, steps: int, turns: int) -> dict[str, Any]:
    """One number of rows."""
    named = in_turns(contenders(base, rows, steps), turns)
    figures = {name: Figure.of(clocks, 1e3) for name, clocks in named.items()}
    bounds = limits(base, Roof.measured(), rows, steps)
    for name, figure in figures.items():
        limit = f", limit {bounds[name]['limit_ms']:.3f}" if name in bounds else ""
        wall, processor = figure.wall["median"], figure.processor["median"]
        print(f"{rows:3} rows  {name:52} {processor:9.3f} ms of processor, {wall:9.3f} of wall{limit}")
    return {
        "milliseconds_a_step": {name: figure.to_dict() for name, figure in figures.items()},
        "ratios": ratios(figures),
        "roofline": bounds,
    }


def main() -> None:
    """Measure, print, write."""
    arguments = step_arguments(__doc__, "step.json")
    torch.set_num_threads(1)
    base = load_bundle(arguments.bundle)
    import transformers

    made_on = conditions() | {
        "transformers": transformers.__version__, "bundle": base.name, "prompt_positions": PROMPT_POSITIONS,
        "steps": arguments.steps, "turns": arguments.turns, "weights": "gpt-s, gpt-l and Hugging Face's are random",
    }  # fmt: skip
    console.print(made_on)
    found = {str(rows): measure(base, rows, arguments.steps, arguments.turns) for rows in arguments.rows}
    write(arguments.out, made_on, {"rows": found})


if __name__ == "__main__":
    main()
