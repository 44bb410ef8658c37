"""Does a row make the same bits alone and in company? Asked of the machine at hand.

The law (docs/engine.md) rests on how libraries and compilers add up, and these choose their kernels by the processor:
what a test proved on one machine is worth asking again on the next.
"""

import numpy as np
import torch

from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.backend import Backend
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.types import Frames, PromptState

PROMPT_FRAMES = (20, 31)
OPTIONS = SamplingOptions(seed=1)
OTHERS = [SamplingOptions(0.8, 20, 1.0, 2), SamplingOptions(1.2, 0, 0.9, 3), SamplingOptions(0.0, 0, 1.0, 4)]
FEW = (2, 3, 4, 5)  # rows in a step: where kernels for few rows end and others begin


def keeps_rows_apart(bundle: Bundle, slots: Backend) -> bool:
    """Makes a few frames of a row alone, and of the same row in another slot among ever more others: bit-equal?

    The slots must be free, and are free again afterwards. A single slot has no company: then the row is made twice.
    """
    first, second = (_prompt(bundle, slots.codebooks, frames) for frames in PROMPT_FRAMES)
    rows = slots.rows
    sizes = sorted(min(size, rows) for size in (*FEW, rows // 2 + 1, rows))

    slots.join(0, first, OPTIONS)
    alone = [slots.step([0]) for _ in sizes]
    slots.leave(0)

    own, others = rows - 1, list(range(rows - 1))
    slots.join(own, first, OPTIONS)
    inside: list[int] = []
    same = True
    for expected, size in zip(alone, sizes, strict=True):
        while len(inside) < size - 1:
            row = others[len(inside)]
            slots.join(row, second, OTHERS[row % len(OTHERS)], choice=row)
            inside.append(row)
        same &= _equal(slots.step([*inside, own]), len(inside), expected)
    for row in (*inside, own):
        slots.leave(row)
    return same


def _prompt(bundle: Bundle, codebooks: int, frames: int) -> PromptState:
    """Of noise: what it says does not matter."""
    noise = 0.1 * torch.randn(frames * HOP_SAMPLES, generator=torch.Generator().manual_seed(frames))
    return prefill(bundle, noise, codebooks=codebooks)


def _equal(made: Frames, at: int, expected: Frames) -> bool:
    """Is row ``at`` to the bit the only row of ``expected``? Nothing equals NaN."""
    names = ("codes", "logprobs", "fine_logprobs", "samples", "mel")
    return all(np.array_equal(getattr(made, name)[at], getattr(expected, name)[0]) for name in names)


assert max(PROMPT_FRAMES) * HOP_SAMPLES < SAMPLE_RATE_HZ  # short: it is read at every start
