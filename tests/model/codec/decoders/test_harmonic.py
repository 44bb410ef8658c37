"""Oscillators: power is kept, the pitch is the one that is asked for, no share changes nothing, phase runs on."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.codec.decoders.frame import FrameDecoder
from model.codec.decoders.harmonic import (
    BANDS,
    HARMONICS,
    LINE_HZ,
    LINES,
    PITCH_BINS,
    PITCH_MAX_HZ,
    PITCH_MIN_HZ,
    RAMP,
    HarmonicDecoder,
    HarmonicState,
    PitchEstimator,
    band_hertz,
    band_shapes,
    line_waves,
)
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.training.pitch import pitch

ALL, NONE = 30.0, -30.0  # logits of a share


@pytest.fixture(scope="module")
def decoder() -> HarmonicDecoder:
    torch.manual_seed(0)
    return HarmonicDecoder(FrameDecoder(16, 2, 3, 7), PitchEstimator(16, 2, 3, 7)).eval().requires_grad_(False)


def shares(logit: float, frames: int) -> Tensor:
    return torch.full((1, frames, BANDS), logit)


def constant(hertz: float, frames: int) -> Tensor:
    return torch.full((1, frames), hertz, dtype=torch.float64)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    """(1, 60, 320), with little above the lines that sines may take over."""
    spectrum = torch.fft.rfft(torch.randn(1, 60, HOP_SAMPLES, generator=torch.Generator().manual_seed(1)))
    spectrum[..., 0] = 0
    spectrum[..., 41:] = 0  # 3 kHz
    made: Tensor = torch.fft.irfft(spectrum, n=HOP_SAMPLES)
    return made


class TestTables:
    def test_bands_share_every_line(self) -> None:
        shapes = band_shapes()
        torch.testing.assert_close(shapes.sum(0), torch.ones(LINES))
        tops = LINE_HZ * (shapes.argmax(1) + 1)
        assert ((tops - band_hertz()).abs() <= LINE_HZ / 2).all()

    def test_waves_are_a_fourier_transform(self, noise: Tensor) -> None:
        cosine, sine = line_waves()
        spectrum = torch.fft.rfft(noise)[..., 1 : LINES + 1]
        torch.testing.assert_close(noise @ cosine.T, spectrum.real, atol=1e-4, rtol=0)
        torch.testing.assert_close(noise @ sine.T, -spectrum.imag, atol=1e-4, rtol=0)


class TestPitch:
    @pytest.mark.parametrize("hertz", [80.0, 100.0, 237.3, 440.0])
    def test_of_a_clear_choice(self, decoder: HarmonicDecoder, hertz: float) -> None:
        steps = decoder.reader.log_hertz
        off = (steps - math.log(hertz)) / (steps[1] - steps[0])
        found = decoder.reader.pitch((-0.5 * off.square()).float())
        assert float(found) == pytest.approx(hertz, rel=2e-3)  # 4 cents

    def test_of_two_octaves_is_one_of_them(self, decoder: HarmonicDecoder) -> None:
        """Where a mean would be neither."""
        logits = torch.full((PITCH_BINS,), -9.0)
        logits[[30, 75]] = torch.tensor([2.0, 1.9])
        assert float(decoder.reader.pitch(logits).log()) == pytest.approx(float(decoder.reader.log_hertz[30]), abs=1e-3)

    def test_stays_in_its_range(self, decoder: HarmonicDecoder) -> None:
        found = decoder.reader.pitch(5 * torch.randn(500, PITCH_BINS))
        assert PITCH_MIN_HZ - 1e-3 < float(found.min()) < float(found.max()) < PITCH_MAX_HZ + 1e-3


class TestSplit:
    def test_no_share_leaves_the_frames_as_they_are(self, decoder: HarmonicDecoder, noise: Tensor) -> None:
        samples, _ = decoder.render(noise, shares(-1.5, 60), constant(150.0, 60))  # a chance of 0.18, below SHARE_FROM
        assert torch.equal(samples.flatten(), noise.flatten())

    @pytest.mark.parametrize("hertz", [75.0, 90.0, 150.0, 211.0, 300.0])
    def test_power_goes_to_the_harmonics(self, decoder: HarmonicDecoder, noise: Tensor, hertz: float) -> None:
        """All of it but what lies below the fundamental's triangle; of little is left."""
        rest, amplitudes = decoder.split(noise, shares(ALL, 60), constant(hertz, 60))
        assert rest.square().sum() < 0.003 * noise.square().sum()
        lines = torch.fft.rfft(noise).abs().square() * (2 / HOP_SAMPLES) ** 2
        reached = (torch.arange(161) * LINE_HZ / hertz).clamp_max(
            1.0
        )  # of a line's power, by triangles that sum to one
        torch.testing.assert_close(amplitudes.square().sum(-1), (lines * reached).sum(-1), rtol=2e-2, atol=0)

    def test_harmonics_beyond_the_lines_are_silent(self, decoder: HarmonicDecoder, noise: Tensor) -> None:
        _, amplitudes = decoder.split(noise, shares(ALL, 60), constant(400.0, 60))
        assert amplitudes[..., 10:].max() < 1e-4 < amplitudes[..., :8].mean()  # 3 kHz and a triangle's width


class TestSines:
    @pytest.mark.parametrize("hertz", [82.0, 110.0, 199.0, 333.0])
    def test_have_the_pitch_that_is_asked_for(self, decoder: HarmonicDecoder, noise: Tensor, hertz: float) -> None:
        samples, _ = decoder.render(noise, shares(ALL, 60), constant(hertz, 60))
        found, voiced = pitch(samples[:, 0])
        assert voiced[:, 3:-3].float().mean() > 0.9
        assert float((found[voiced] / hertz).log2().abs().median()) < 0.005

    def test_follow_their_definition(self, decoder: HarmonicDecoder) -> None:
        """Phase is the integral of a pitch that moves within the ramp, summed up sample by sample."""
        generator = np.random.default_rng(0)
        hertz = generator.uniform(80, 400, 6)
        amplitudes = generator.uniform(0, 0.1, (6, HARMONICS)).astype(np.float32)
        made, after = decoder.synthesise_harmonics(
            torch.from_numpy(hertz)[None], torch.from_numpy(amplitudes)[None], None
        )
        moved = np.minimum(np.arange(0.5, HOP_SAMPLES) / RAMP, 1.0)  # in the middle of each step: exact for a line
        ramp = np.minimum(np.arange(1, HOP_SAMPLES + 1) / RAMP, 1.0)
        phase, old_hertz, old, wanted = 0.0, hertz[0], np.zeros(HARMONICS), []
        for new_hertz, new in zip(hertz, amplitudes, strict=True):
            turns = phase + np.cumsum(old_hertz + moved * (new_hertz - old_hertz)) / SAMPLE_RATE_HZ
            sines = np.sin(2 * np.pi * turns[:, None] * np.arange(1, HARMONICS + 1))
            wanted.append(((old + ramp[:, None] * (new - old)) * sines).sum(1))
            phase, old_hertz, old = turns[-1] % 1.0, new_hertz, new
        np.testing.assert_allclose(made[0].numpy(), np.stack(wanted), atol=1e-4)
        assert float(after.phase) == pytest.approx(phase, abs=1e-9)

    def test_run_on_from_frame_to_frame(self, decoder: HarmonicDecoder) -> None:
        """No click at a frame's edge: a steady voice is the same sine there as anywhere."""
        amplitudes = torch.zeros(1, 40, HARMONICS)
        amplitudes[..., 0] = 0.5
        made, _ = decoder.synthesise_harmonics(constant(101.0, 40), amplitudes, None)
        bend = made.flatten()[RAMP:].diff(n=2).abs()  # at most the square of the angle per sample
        assert bend.max() < 0.5 * (2 * math.pi * 101.0 / SAMPLE_RATE_HZ) ** 2 * 1.02

    def test_go_on_from_a_state(self, decoder: HarmonicDecoder) -> None:
        generator = torch.Generator().manual_seed(3)
        hertz = 100 + 200 * torch.rand(2, 20, generator=generator, dtype=torch.float64)
        amplitudes = torch.rand(2, 20, HARMONICS, generator=generator) * 0.1
        whole, _ = decoder.synthesise_harmonics(hertz, amplitudes, None)
        first, state = decoder.synthesise_harmonics(hertz[:, :7], amplitudes[:, :7], None)
        assert isinstance(state, HarmonicState)
        rest, _ = decoder.synthesise_harmonics(hertz[:, 7:], amplitudes[:, 7:], state)
        torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=0)
