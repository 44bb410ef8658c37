"""The slice of decoded samples against `model.lm.mel`."""

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, MEL_WINDOW_SAMPLES
from model.inference.numba_backend.log_mel import HALF_WINDOW, log_mel_frame, magnitudes
from model.inference.numba_backend.weights import mel_tables
from model.lm.mel import LogMel


def test_transform() -> None:
    tables = mel_tables(LogMel())
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-4):
        signal = (rng.standard_normal(MEL_WINDOW_SAMPLES) * scale).astype(np.float32)
        out = np.empty(HALF_WINDOW + 1, np.float32)
        magnitudes(signal, tables, np.empty(HALF_WINDOW, np.float32), np.empty(HALF_WINDOW, np.float32), out)
        exact = np.abs(np.fft.rfft(signal.astype(np.float64) * np.asarray(tables.window, np.float64)))
        np.testing.assert_allclose(out, exact, atol=1e-5 * scale * 32)


def test_slices(bundle: Bundle, speech_like: Tensor) -> None:
    tables = mel_tables(bundle.mel)
    expected = bundle.mel(speech_like[None])[0].numpy()
    tails = np.zeros((3, MEL_LEFT_SAMPLES), np.float32)
    rows, mel = np.array([2]), np.empty((1, 64), np.float32)
    for frame in range(100):
        samples = speech_like[frame * HOP_SAMPLES : (frame + 1) * HOP_SAMPLES].numpy()[None].copy()
        log_mel_frame(samples, tables, tails, rows, mel)
        np.testing.assert_allclose(mel[0], expected[frame], atol=1e-4)
    assert not tails[:2].any()
    np.testing.assert_array_equal(tails[2], speech_like[100 * HOP_SAMPLES - MEL_LEFT_SAMPLES : 100 * HOP_SAMPLES])


def test_silence(bundle: Bundle) -> None:
    mel = np.empty((1, 64), np.float32)
    log_mel_frame(
        np.zeros((1, 320), np.float32), mel_tables(bundle.mel), np.zeros((1, 704), np.float32), np.array([0]), mel
    )
    np.testing.assert_allclose(mel, bundle.mel(torch.zeros(1, 320))[0].numpy(), atol=1e-6)
