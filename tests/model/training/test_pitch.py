"""Pitch by autocorrelation: known tones, hiss, and a codec that snaps every voice to the frame rate."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.training.configs import DecoderTraining, SourceFilterTraining
from model.training.pitch import MEASURE, PitchTracker, pitch, pitch_match
from tests.support.signals import make_speech_like


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


@pytest.mark.parametrize("kind", [SourceFilterTraining, DecoderTraining])
def test_a_training_finds_pitch_as_figures_do_unless_it_says_otherwise(
    kind: type[SourceFilterTraining | DecoderTraining],
) -> None:
    assert PitchTracker.of(kind()) == MEASURE
    other = PitchTracker.of(
        kind(
            pitch_window=512, pitch_shortest=60, pitch_longest=200, pitch_voiced=0.99, pitch_quiet=0.1,
            pitch_octave_cost=0.2,
        )
    )  # fmt: skip
    assert other == PitchTracker(512, 60, 200, 0.99, 0.1, 0.2)


def test_what_counts_as_voiced_is_the_trackers() -> None:
    voice = make_speech_like(2.0)[None]
    shares = [float(pitch(voice, replace(MEASURE, voiced=least))[1].float().mean()) for least in (0.2, 0.55, 0.95)]
    assert shares[0] > shares[1] > shares[2]
