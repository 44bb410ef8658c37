"""How fast the closed loop runs: seconds of audio made in a second, one stream, one thread, at 2, 4 and 8 codebooks.

    python benchmarks/closed_loop.py --bundle weights/default --out benchmarks/results/closed_loop.json

The settings take turns within one process, because a shared machine is noisy; medians over the turns are reported.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from model.bundle import load_bundle
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from model.generate import generate, prefill
from model.sampling import SamplingOptions
from model.score import score
from model.training.loop import machine

PROMPT_SECONDS = 3
FRAMES = 150


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("weights/default"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/closed_loop.json"))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle = load_bundle(arguments.bundle)
    prompt = torch.randn(PROMPT_SECONDS * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) * 0.05
    clip = torch.randn(30 * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(1)) * 0.05
    rows: dict[str, list[float]] = {}
    for turn in range(arguments.turns + 1):
        for codebooks in (2, 4, 8):
            start = time.perf_counter()
            state = prefill(bundle, prompt, codebooks=codebooks)
            read = time.perf_counter()
            made = generate(bundle, state, frames=FRAMES, options=SamplingOptions(seed=turn), codebooks=codebooks)
            next(made)
            first = time.perf_counter()
            for _ in made:
                pass
            ended = time.perf_counter()
            if turn:  # the first turn warms up
                rows.setdefault(f"{codebooks} codebooks: times real time", []).append(
                    (FRAMES - 1) / FRAME_RATE_HZ / (ended - first)
                )
                rows.setdefault(f"{codebooks} codebooks: ms a frame", []).append((ended - first) / (FRAMES - 1) * 1e3)
                rows.setdefault(f"prefill of {PROMPT_SECONDS} s: ms", []).append((read - start) * 1e3)
        start = time.perf_counter()
        score(bundle, clip)
        if turn:
            rows.setdefault("score: times real time", []).append(30 / (time.perf_counter() - start))
    figures = {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in rows.items()
    }
    conditions = machine() | {"threads": arguments.threads, "turns": arguments.turns, "bundle": bundle.name}
    print(json.dumps(conditions))
    for name, figure in figures.items():
        print(f"{name:32} {figure['median']:8.2f}  ({figure['low']:.2f} to {figure['high']:.2f})")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"conditions": conditions, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
