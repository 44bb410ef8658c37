"""Does it pay to read prompts in one batch? The engine reads them one by one on a CPU; this is why.

    python -m benchmarks.speed.prompts_together            # about 1 minute, one thread

The parts of reading 4 prompts of 3 s, in one call and in one call after another, in turns in one process. The compiled
encoder, which serves, works row by row whoever calls it; torch's would be the one that batches.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.baselines import PROMPT_SECONDS, a_prompt
from benchmarks.speed.timing import Clocks, Figure, clocks, conditions, console, in_turns, since, write
from model.checkpoint import Bundle, load_bundle
from model.codec.streaming import StreamingEncoder
from model.inference.backend import encoder_for

PROMPTS = 4
PARTS = ("encoder", "encoder in torch", "language model")


def timed(call: Callable[[Tensor], object], parts: list[Tensor]) -> Clocks:
    """All parts, one call each."""
    begin = clocks()
    for part in parts:
        call(part)
    return since(begin)


@torch.inference_mode()
def ways(bundle: Bundle, prompts: Tensor) -> dict[str, Callable[[], Clocks]]:
    """What takes turns, for prompts (B, N)."""
    fast, plain = encoder_for(bundle.codec), StreamingEncoder(bundle.codec)
    codes = fast.step(prompts, fast.start(len(prompts)))[0]
    rows = torch.cat([codes[:, :1].transpose(1, 2).float(), bundle.mel(prompts)], -1)  # (B, T, 1 + 64): one tensor

    @torch.inference_mode()
    def encode(encoder: Any, samples: Tensor) -> object:
        return encoder.step(samples, encoder.start(len(samples)))

    @torch.inference_mode()
    def read(some: Tensor) -> object:
        model = bundle.lm
        return model.logits(model(some[..., 0].long(), some[..., 1:], cache=model.new_cache(len(some))))

    both: tuple[tuple[str, Callable[[Tensor], object], Tensor], ...] = (
        (PARTS[0], partial(encode, fast), prompts), (PARTS[1], partial(encode, plain), prompts), (PARTS[2], read, rows)
    )  # fmt: skip
    made: dict[str, Callable[[], Clocks]] = {}
    for name, call, whole in both:
        made[f"{name}, one batch"] = partial(timed, call, [whole])
        made[f"{name}, one by one"] = partial(timed, call, list(whole.split(1)))
    return made


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--out", type=Path, default=RESULTS / "prompts_together.json")
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    made_on = conditions() | {
        "bundle": bundle.name, "turns": arguments.turns, "prompts": PROMPTS, "prompt_seconds": PROMPT_SECONDS
    }  # fmt: skip
    console.print(made_on)
    contenders = ways(bundle, torch.stack([a_prompt().roll(1000 * row) for row in range(PROMPTS)]))
    found = {name: Figure.of(times, 1e3) for name, times in in_turns(contenders, arguments.turns).items()}
    ratios = {
        part: found[f"{part}, one batch"].wall["median"] / found[f"{part}, one by one"].wall["median"] for part in PARTS
    }
    for name, figure in found.items():
        print(f"{name:32} {figure.wall['median']:8.2f} ms ({figure.processor['median']:.2f} of processor)")
    print({part: round(ratio, 3) for part, ratio in ratios.items()})
    body = {
        "milliseconds": {name: figure.to_dict() for name, figure in found.items()},
        "batch_times_one_by_one": ratios,
    }
    write(arguments.out, made_on, body)


if __name__ == "__main__":
    main()
