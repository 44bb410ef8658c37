"""Pitch by autocorrelation: known tones, hiss, and a codec that snaps every voice to the frame rate."""

import math

import pytest
import torch
from torch import Tensor

from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.training.pitch import pitch, pitch_match


def buzz(hertz: float | Tensor, samples: int = 24_000) -> Tensor:
    """A sound of ten harmonics, (N,)."""
    phase = torch.cumsum(torch.as_tensor(hertz).expand(samples).double() / SAMPLE_RATE_HZ, 0)
    return sum((torch.sin(2 * math.pi * k * phase) / k for k in range(1, 11)), torch.zeros(samples)).float() * 0.1


@pytest.mark.parametrize("hertz", [80.0, 112.5, 150.0, 220.0, 300.0, 450.0])
def test_a_tone_has_its_pitch(hertz: float) -> None:
    found, voiced = pitch(buzz(hertz)[None])
    assert found.shape == voiced.shape == (1, 75)
    inner = slice(3, -3)
    assert voiced[0, inner].all()
    torch.testing.assert_close(found[0, inner], torch.full((69,), hertz), rtol=0.01, atol=0.0)


def test_a_gliding_tone_is_followed() -> None:
    glide = torch.linspace(100, 200, 24_000)
    found, voiced = pitch(buzz(glide)[None])
    assert voiced[0, 3:-3].all()
    torch.testing.assert_close(found[0, 3:-3], glide[::HOP_SAMPLES][3:-3], rtol=0.02, atol=0.0)


def test_hiss_and_silence_are_not_voiced() -> None:
    hiss = 0.1 * torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    assert pitch(hiss)[1].float().mean() < 0.1
    assert not pitch(torch.zeros(1, 24_000))[1].any()
    assert not pitch(buzz(200.0)[None] * 1e-3)[1].any()


def test_match_wants_voice_and_pitch() -> None:
    real = buzz(200.0)
    assert pitch_match(real * 0.5, real) == pytest.approx(1.0)
    assert pitch_match(buzz(203.0), real) == pytest.approx(1.0)  # 26 cents
    near = pitch_match(buzz(225.0), real)
    assert near is not None
    assert near < 0.1  # 204 cents: what snapping to a multiple of 75 Hz does
    silent = pitch_match(torch.zeros_like(real), real)
    assert silent == 0.0
    assert pitch_match(real, torch.zeros_like(real)) is None
