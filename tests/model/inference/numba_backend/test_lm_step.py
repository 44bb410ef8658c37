"""The compiled step on the bundle that ships (float16, full width); `test_slots` tests the laws on a tiny one."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle, load_bundle
from model.constants import HOP_SAMPLES
from model.inference.generate import generate
from model.inference.numba_backend.backend import NumbaBackend
from model.inference.numba_backend.weights import packed
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.types import Frames, PromptState

SHIPPED = Path(__file__).resolve().parents[4] / "weights" / "default"
OPTIONS = [
    SamplingOptions(seed=38),
    SamplingOptions(temperature=0.7, top_k=50, seed=35),
    SamplingOptions(temperature=0.9, top_p=0.9, seed=61),
]


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(SHIPPED)


@pytest.fixture(scope="module")
def prompts(shipped: Bundle, speech_like: Tensor) -> list[PromptState]:
    """A short one, a long one, and one of 8 s, which is beyond the window of 512."""
    long = torch.cat([speech_like, speech_like])
    return [prefill(shipped, clip) for clip in (speech_like[: 20 * HOP_SAMPLES], speech_like, long)]


def alone(bundle: Bundle, prompt: PromptState, options: SamplingOptions, frames: int) -> list[Frames]:
    slots = NumbaBackend(bundle, 1)
    slots.join(0, prompt, options)
    return [slots.step([0]) for _ in range(frames)]


def same(one: Frames, index: int, other: Frames) -> bool:
    return all(
        np.array_equal(getattr(one, name)[index], getattr(other, name)[0])
        for name in ("codes", "logprobs", "fine_logprobs", "samples", "mel")
    )


@pytest.mark.parametrize("which", range(3))
def test_it_makes_what_generate_makes(shipped: Bundle, prompts: list[PromptState], which: int) -> None:
    """Other sums of the same numbers: equal tokens (a draw within rounding of a step of the cdf may differ, 1 in
    100,000; these seeds have none), values within rounding. (A pitch on the edge of a step of 1/64 Hz, one of
    some hundred, rounds to either side; the pulses are then 0.0002 cycles apart: a quiet band of mel shows it, and loud
    samples do.
    Of 24 tries of the seventh edition (8 seeds for each) four drew another code; the furthest log-probability was
    5e-4 away, the furthest sample 5e-4. Of the sixth: 4, 7e-4, 6e-4; of the fifth: 3, 4e-4, 6e-4.)"""
    made = alone(shipped, prompts[which], OPTIONS[which], 40)
    expected = generate(shipped, prompts[which], frames=40, options=OPTIONS[which])
    for frame, plain in zip(made, expected, strict=True):
        np.testing.assert_array_equal(frame.codes[0], plain.codes[0].numpy())
        np.testing.assert_allclose(frame.logprobs[0], plain.logprobs[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(frame.fine_logprobs[0], plain.fine_logprobs[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(frame.samples[0], plain.samples[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(frame.mel[0], plain.mel[0].numpy(), atol=1e-3)


def test_any_company_changes_no_bit(shipped: Bundle, prompts: list[PromptState]) -> None:
    expected = [alone(shipped, prompt, options, 25) for prompt, options in zip(prompts, OPTIONS, strict=True)]
    assert packed(shipped) is packed(shipped)
    rng = np.random.default_rng(0)
    slots = NumbaBackend(shipped, 7)
    inside: dict[int, tuple[int, int]] = {}  # row: which prompt, frames made
    compared = 0
    for _ in range(120):
        for row in range(7):
            if row not in inside and rng.random() < 0.3:
                which = int(rng.integers(3))
                slots.join(row, prompts[which], OPTIONS[which])
                inside[row] = which, 0
        active = [row for row in rng.permutation(7).tolist() if row in inside and rng.random() < 0.9]
        frames = slots.step(active)
        for at, row in enumerate(active):
            which, made = inside[row]
            assert same(frames, at, expected[which][made])
            compared += 1
            inside[row] = which, made + 1
            if made + 1 == 25 or rng.random() < 0.05:
                slots.leave(row)
                del inside[row]
    assert compared > 300


def test_two_threads_share_the_weights(shipped: Bundle, prompts: list[PromptState]) -> None:
    """Each has slots of its own; the step releases the GIL, so both run at the same time."""
    expected = [alone(shipped, prompts[which], OPTIONS[which], 60) for which in range(2)]
    made: list[list[Frames]] = [[], []]

    def run(which: int) -> None:
        made[which] = alone(shipped, prompts[which], OPTIONS[which], 60)

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(2):
        assert all(same(frame, 0, other) for frame, other in zip(made[which], expected[which], strict=True))
