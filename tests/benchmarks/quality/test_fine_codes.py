"""Fine codes: what is drawn, what is shuffled, and differences that are paired."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.quality.codec import locked
from benchmarks.quality.fine_codes import Clip, drawn_codes, shuffled_codes, summary
from model.checkpoint import random_bundle
from model.constants import SAMPLE_RATE_HZ, VOCABULARY
from model.lm.depth_decoder import frames_before

FRAMES = 30


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return torch.randint(0, VOCABULARY, (FRAMES, 8), generator=torch.Generator().manual_seed(0))


def test_drawn_codes_keep_the_coarse_and_follow_the_seed(codes: Tensor) -> None:
    bundle = random_bundle("tiny")
    hidden = torch.randn(FRAMES, bundle.lm.config.dim, generator=torch.Generator().manual_seed(1))
    one, again, other = (drawn_codes(bundle, hidden, codes, 1.0, seed) for seed in (3, 3, 4))
    assert one.shape == codes.shape
    assert torch.equal(one[:, 0], codes[:, 0])
    assert torch.equal(one, again)
    assert (one[:, 1:] != other[:, 1:]).float().mean() > 0.9
    greedy = drawn_codes(bundle, hidden, codes, 0.0, 3)
    forced = bundle.lm.fine(hidden, greedy, frames_before(greedy[None])[0])
    assert torch.equal(greedy[:, 1:], forced.argmax(-1))  # teacher-forced with what was drawn: each is the likeliest


def test_shuffled_codes_keep_their_counts_and_lose_their_frames(codes: Tensor) -> None:
    shuffled = shuffled_codes(codes, 5)
    assert torch.equal(shuffled[:, 0], codes[:, 0])
    for book in range(1, 8):
        assert torch.equal(shuffled[:, book].sort().values, codes[:, book].sort().values)
        assert not torch.equal(shuffled[:, book], codes[:, book])
    pairs = {tuple(pair) for pair in codes[:, 1:3].tolist()}
    assert sum(tuple(pair) in pairs for pair in shuffled[:, 1:3].tolist()) < FRAMES / 2  # each book by its own order


def test_summary_pairs_clips() -> None:
    rng = np.random.default_rng(0)

    def clip(true: float, drawn: float) -> Clip:
        figures = {"2/true": {"log_mel": true, "pesq": 1.0}, "2/drawn": {"log_mel": drawn}}
        real = rng.standard_normal((20, 40))
        return Clip(figures, {"real": real, "2/true": real, "2/drawn": real + 1.0}, np.zeros(7), torch.zeros(1, 8))

    out = summary([clip(0.1, 0.2), clip(5.1, 5.2), clip(9.1, 9.2)])
    assert out["2/true"]["distance"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert out["2/drawn"]["distance"]["low"] > 10  # every direction is off by one deviation
    assert out["2/drawn"]["log_mel_beside_true"] == {name: pytest.approx(0.1) for name in ("mean", "low", "high")}
    assert out["2/true"]["log_mel"]["clips"] == 3
    assert "log_mel_beside_true" not in out["2/true"]
    assert "pesq" not in out["2/drawn"]  # where a figure is missing, there is no pair


@pytest.mark.parametrize(("hertz", "share"), [(150.0, 1.0), (300.0, 1.0), (187.0, 0.0)])
def test_locked_pitch(hertz: float, share: float) -> None:
    times = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tone = sum((torch.sin(2 * math.pi * hertz * k * times) / k for k in range(1, 9)), torch.zeros(SAMPLE_RATE_HZ))
    assert locked(tone * 0.1) == pytest.approx(share, abs=0.06)
    assert locked(torch.zeros(SAMPLE_RATE_HZ)) is None
