"""Compiled oscillators against those of `model.codec.decoders.harmonic`."""

from typing import Any

import numpy as np
import pytest
import torch

from model.codec.decoders.frame import FrameDecoder
from model.codec.decoders.harmonic import BANDS, HARMONICS, LINES, PITCH_BINS, HarmonicDecoder, PitchEstimator
from model.constants import HOP_SAMPLES
from model.inference.numba_backend.harmonics import gather, pitch, synthesise_harmonics
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import sine_cosine


@compiled
def each_sine_cosine(turns: Any, sine: Any, cosine: Any) -> None:
    for i in range(turns.shape[0]):
        sine[i], cosine[i] = sine_cosine(turns[i])


@pytest.fixture(scope="module")
def decoder() -> HarmonicDecoder:
    torch.manual_seed(0)
    return HarmonicDecoder(FrameDecoder(16, 2, 3, 7), PitchEstimator(16, 2, 3, 7)).eval().requires_grad_(False)


def test_sine_and_cosine() -> None:
    turns = np.linspace(-1, 1, 200_001).astype(np.float32)
    sine, cosine = np.empty_like(turns), np.empty_like(turns)
    each_sine_cosine(turns, sine, cosine)
    angle = 2 * np.pi * turns.astype(np.float64)
    assert np.abs(sine - np.sin(angle)).max() < 3e-7
    assert np.abs(cosine - np.cos(angle)).max() < 3e-7


def test_pitch(decoder: HarmonicDecoder) -> None:
    logits = 4 * torch.randn(300, PITCH_BINS, generator=torch.Generator().manual_seed(1))
    logits[:3] = -9.0
    logits[0, 0] = logits[1, -1] = logits[2, 64] = 5.0  # the ends of the range
    wanted = decoder.reader.pitch(logits).numpy()
    log_hertz = decoder.reader.log_hertz.numpy()
    found = [pitch(row, log_hertz) for row in logits.numpy()]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("hertz", [70.0, 75.0, 133.7, 300.0, 490.0])
def test_amplitudes(decoder: HarmonicDecoder, hertz: float) -> None:
    frame = torch.randn(1, 1, HOP_SAMPLES, generator=torch.Generator().manual_seed(2)) * 0.1
    everything = torch.full((1, 1, BANDS), 40.0)
    _, wanted = decoder.split(frame, everything, torch.tensor([[hertz]], dtype=torch.float64))
    spectrum = torch.fft.rfft(frame[0, 0])[1 : LINES + 1].abs().square().numpy()
    amplitudes = np.empty(HARMONICS, np.float32)
    gather((0.999 * spectrum * (2 / HOP_SAMPLES) ** 2).astype(np.float32), np.float32(hertz), amplitudes)
    np.testing.assert_allclose(amplitudes, wanted[0, 0].numpy(), atol=2e-6)


def test_sines(decoder: HarmonicDecoder) -> None:
    rng = np.random.default_rng(0)
    hertz = rng.uniform(71, 480, 30)
    amplitudes = rng.uniform(0, 0.05, (30, HARMONICS)).astype(np.float32)
    amplitudes[10:20, 30:] = 0.0  # few harmonics, then many again
    amplitudes[14:16] = 0.0
    wanted, after = decoder.synthesise_harmonics(
        torch.from_numpy(hertz)[None], torch.from_numpy(amplitudes)[None], None
    )
    phase, before, old = 0.0, hertz[0], np.zeros(HARMONICS, np.float32)
    for frame in range(30):
        out = np.zeros(HOP_SAMPLES, np.float32)
        phase = synthesise_harmonics(phase, before, hertz[frame], old, amplitudes[frame], out)
        before, old = hertz[frame], amplitudes[frame]
        np.testing.assert_allclose(out, wanted[0, frame].numpy(), atol=3e-5)
    assert phase == pytest.approx(float(after.phase), abs=1e-10)
