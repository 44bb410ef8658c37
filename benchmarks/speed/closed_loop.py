"""How fast one stream's closed loop runs on one core, at 2, 4 and 8 codebooks, and how long a prompt takes to read.

    python -m benchmarks.speed.closed_loop                 # about 1 minute

The engine's step (`model.inference.torch_backend.backend_for`) and, for comparison, `model.inference.generate`: the
same loop in plain torch, for research. They take turns in one process.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.baselines import PROMPT_SECONDS, a_prompt
from benchmarks.speed.timing import Clocks, Figure, clocks, conditions, console, in_turns, since, write
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from model.inference.backend import backend_for
from model.inference.generate import generate
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions

CODEBOOKS = (2, 4, 8)


def a_frame(total: Clocks, frames: int) -> Clocks:
    return total[0] / frames, total[1] / frames


def stepped(bundle: Bundle, frames: int, codebooks: int) -> Clocks:
    """A frame of the engine's step."""
    slots = backend_for(bundle, 1, codebooks)
    slots.join(0, prefill(bundle, a_prompt(), codebooks=codebooks), SamplingOptions(seed=1))
    slots.step([0])
    begin = clocks()
    for _ in range(frames):
        slots.step([0])
    return a_frame(since(begin), frames)


def in_torch(bundle: Bundle, frames: int, codebooks: int) -> Clocks:
    """A frame of `model.inference.generate`."""
    prompt = prefill(bundle, a_prompt(), codebooks=codebooks)
    made = generate(bundle, prompt, frames=frames + 1, options=SamplingOptions(seed=1), codebooks=codebooks)
    next(made)
    begin = clocks()
    for _ in made:
        pass
    return a_frame(since(begin), frames)


def read(bundle: Bundle, seconds: float) -> Clocks:
    """A prompt of so many seconds."""
    samples = a_prompt().repeat(round(seconds / PROMPT_SECONDS) + 1)[: round(seconds * SAMPLE_RATE_HZ)]
    begin = clocks()
    prefill(bundle, samples)
    return since(begin)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--out", type=Path, default=RESULTS / "closed_loop.json")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--frames", type=int, default=375)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    made_on = conditions() | {
        "bundle": bundle.name, "turns": arguments.turns, "frames": arguments.frames, "prompt_seconds": PROMPT_SECONDS
    }  # fmt: skip
    console.print(made_on)
    few = max(1, arguments.frames // 5)
    ways = {f"step, {books} codebooks": partial(stepped, bundle, arguments.frames, books) for books in CODEBOOKS}
    ways |= {f"torch, {books} codebooks": partial(in_torch, bundle, few, books) for books in CODEBOOKS}
    ways |= {f"prompt of {seconds} s": partial(read, bundle, seconds) for seconds in (3, 10)}
    found = {name: Figure.of(times, 1e3) for name, times in in_turns(ways, arguments.turns).items()}
    speeds = {}
    for name, figure in found.items():
        line = f"{name:22} {figure.wall['median']:8.2f} ms ({figure.processor['median']:.2f} of processor)"
        if "codebooks" in name:
            speeds[name] = 1e3 / FRAME_RATE_HZ / figure.wall["median"]
            line += f", {speeds[name]:.1f} x real time"
        print(line)
    body = {"milliseconds": {name: figure.to_dict() for name, figure in found.items()}, "times_real_time": speeds}
    write(arguments.out, made_on, body)


if __name__ == "__main__":
    main()
