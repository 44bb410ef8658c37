"""The spectral encoder: causal to the bit, streamed as whole, and an analysis that tells notes and pitches apart."""

import math

import pytest
import torch
from torch import Tensor

from model.codec.encoders.spectral import (
    LEFT_SAMPLES,
    NOTES,
    SHARP_NOTES,
    Analysis,
    SpectralEncoder,
    falling_window,
    note_filters,
    note_hertz,
)
from model.constants import HOP_SAMPLES, LATENT_DIM, SAMPLE_RATE_HZ


@pytest.fixture(scope="module")
def encoder() -> SpectralEncoder:
    torch.manual_seed(0)
    return SpectralEncoder(16, 2, 2, 5).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis()


def sine(hertz: float, frames: int = 60) -> Tensor:
    time = torch.arange(frames * HOP_SAMPLES, dtype=torch.float64) / SAMPLE_RATE_HZ
    return (0.3 * torch.sin(2 * math.pi * hertz * time)).float()[None]


def test_latents_have_a_frame_each(encoder: SpectralEncoder) -> None:
    assert encoder(torch.randn(2, 1, HOP_SAMPLES * 9)).shape == (2, LATENT_DIM, 9)


@pytest.mark.parametrize("frame", [0, 5, 29])
def test_latents_know_nothing_of_later_samples(encoder: SpectralEncoder, frame: int) -> None:
    samples = torch.randn(1, 1, HOP_SAMPLES * 40, generator=torch.Generator().manual_seed(1))
    changed = samples.clone()
    changed[..., HOP_SAMPLES * (frame + 1) :] = 0.7
    before, after = encoder(samples), encoder(changed)
    assert torch.equal(before[..., : frame + 1], after[..., : frame + 1])
    assert not torch.equal(before[..., frame + 1], after[..., frame + 1])


def test_newest_sample_counts(analysis: Analysis) -> None:
    samples = torch.zeros(1, HOP_SAMPLES * 4)
    samples[0, -2] = 0.5
    features = analysis(samples)
    silent = analysis(torch.zeros(1, HOP_SAMPLES * 4))
    for name in ("mel", "levels"):
        assert not torch.equal(features[name][:, -1], silent[name][:, -1]), name
        assert torch.equal(features[name][:, :-1], silent[name][:, :-1]), name


@pytest.mark.parametrize("size", [1, 3, 20])
def test_analysis_in_chunks(analysis: Analysis, size: int) -> None:
    samples = torch.randn(1, HOP_SAMPLES * 40, generator=torch.Generator().manual_seed(2)) * 0.1
    whole = analysis(samples)
    left = torch.zeros(1, LEFT_SAMPLES)
    parts: dict[str, list[Tensor]] = {name: [] for name in whole}
    for start in range(0, 40, size):
        chunk = samples[:, start * HOP_SAMPLES : (start + size) * HOP_SAMPLES]
        for name, value in analysis(chunk, left).items():
            parts[name].append(value)
        left = torch.cat([left, chunk], -1)[:, -LEFT_SAMPLES:]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat(parts[name], 1), value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("note", [28, 40, 50, 57, 70, 90], ids=lambda note: f"note{note}")
def test_loudest_note_is_the_one_that_sounds(analysis: Analysis, note: int) -> None:
    notes = analysis(sine(float(note_hertz()[note])))["notes"][0, -1]
    assert int(notes.argmax()) == note


@pytest.mark.parametrize("hertz", [80.0, 150.0, 333.0])
def test_strongest_lag_is_the_period(analysis: Analysis, hertz: float) -> None:
    voice = torch.stack([sine(harmonic * hertz)[0] for harmonic in range(1, 5)]).sum(0, keepdim=True) / 4
    found = analysis.lags[int(analysis(voice)["lags"][0, -1].argmax())]
    assert abs(math.log2(float(found) * hertz / SAMPLE_RATE_HZ)) < 0.03


def test_phase_advance_tells_a_frequency_between_bins(analysis: Analysis) -> None:
    bin_hertz = SAMPLE_RATE_HZ / 2048
    for off in (-0.4, 0.0, 0.3):
        turn = analysis(sine((30 + off) * bin_hertz))["turn"][0, -1]
        cosine, sine_part = float(turn[30]), float(turn[64 + 30])
        advance = math.atan2(sine_part, cosine) / (2 * math.pi)
        assert advance == pytest.approx(off * bin_hertz * HOP_SAMPLES / SAMPLE_RATE_HZ, abs=5e-3)


def test_silence_is_finite(analysis: Analysis) -> None:
    assert all(bool(torch.isfinite(value).all()) for value in analysis(torch.zeros(1, HOP_SAMPLES * 3)).values())


def test_features_are_of_about_unit_size(analysis: Analysis, speech_like: Tensor) -> None:
    for name, value in analysis(speech_like[None]).items():
        assert float(value.abs().mean()) < 3, name


def test_windows_fall_at_their_end() -> None:
    window = falling_window(100, 10)
    assert len(window) == 100
    assert int(window.argmax()) == 90
    assert float(window[0]) == 0.0 < float(window[-1])


def test_every_note_has_bins() -> None:
    filters = torch.cat(
        [note_filters(8192, 0, SHARP_NOTES).sum(0), note_filters(2048, SHARP_NOTES, NOTES - SHARP_NOTES).sum(0)]
    )
    assert bool((filters > 0.5).all())
    assert float(note_hertz()[45]) == pytest.approx(440.0)
