"""The causal mel: equal to a plain numpy one, exact in chunks, and blind to the future to the bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.constants import HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, MEL_WINDOW_SAMPLES, SAMPLE_RATE_HZ
from model.lm.mel import LOG_FLOOR, LogMel, mel_filter_bank


def numpy_mel(samples: np.ndarray) -> np.ndarray:
    """The definition, written out without torch: (N,) -> (N // 320, 64) float64."""
    frequencies = np.linspace(0, SAMPLE_RATE_HZ / 2, MEL_WINDOW_SAMPLES // 2 + 1)
    top = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)  # HTK's mel scale
    corners = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(MEL_WINDOW_SAMPLES) / MEL_WINDOW_SAMPLES)
    padded = np.concatenate([np.zeros(MEL_LEFT_SAMPLES), samples])
    out = np.zeros((len(samples) // HOP_SAMPLES, MEL_BANDS))
    for frame in range(len(out)):
        magnitude = np.abs(np.fft.rfft(padded[frame * HOP_SAMPLES :][:MEL_WINDOW_SAMPLES] * hann))
        for band in range(MEL_BANDS):
            low, middle, high = corners[band : band + 3]
            rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
            out[frame, band] = np.log(np.maximum(0, np.minimum(rise, fall)) @ magnitude + LOG_FLOOR)
    return out


@pytest.fixture(scope="module")
def mel() -> LogMel:
    return LogMel()


def test_equals_numpy(mel: LogMel, speech_like: Tensor) -> None:
    samples = speech_like[: 40 * HOP_SAMPLES + 100]
    wanted = numpy_mel(samples.double().numpy())
    got = mel(samples[None])[0].numpy()
    assert got.shape == wanted.shape == (40, MEL_BANDS)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)  # float32 FFT, near the floor


@pytest.mark.parametrize("frame", range(12))
def test_blind_to_the_future(mel: LogMel, speech_like: Tensor, frame: int) -> None:
    samples = speech_like[None, 24000 : 24000 + 12 * HOP_SAMPLES]
    changed = samples.clone()
    changed[:, HOP_SAMPLES * (frame + 1) :] = torch.rand(12 * HOP_SAMPLES)[
        : samples.shape[1] - HOP_SAMPLES * (frame + 1)
    ]
    assert torch.equal(mel(samples)[:, : frame + 1], mel(changed)[:, : frame + 1])


@pytest.mark.parametrize("frame", range(11))
def test_sees_its_own_last_samples(mel: LogMel, speech_like: Tensor, frame: int) -> None:
    """The window reaches to the end of the frame: it is not shifted further back than it must be."""
    samples = speech_like[None, 24000 : 24000 + 12 * HOP_SAMPLES]
    changed = samples.clone()
    changed[:, HOP_SAMPLES * (frame + 1) - 40 : HOP_SAMPLES * (frame + 1)] += 1.0
    difference = (mel(samples) - mel(changed)).abs().amax((0, 2))
    assert difference[frame] > 1e-3
    assert not difference[:frame].any()


@pytest.mark.parametrize("sizes", [(1,) * 9, (2, 7), (5, 1, 3), (9,)], ids=str)
def test_chunks_with_left_context_equal_the_whole(mel: LogMel, speech_like: Tensor, sizes: tuple[int, ...]) -> None:
    samples = speech_like[None, : 9 * HOP_SAMPLES]
    left, parts, start = torch.zeros(1, MEL_LEFT_SAMPLES), [], 0
    for size in sizes:
        chunk = samples[:, start * HOP_SAMPLES : (start + size) * HOP_SAMPLES]
        parts.append(mel(chunk, left))
        left = torch.cat([left, chunk], 1)[:, -MEL_LEFT_SAMPLES:]
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), mel(samples), rtol=0, atol=1e-5)


def test_a_tone_lands_in_its_band(mel: LogMel) -> None:
    times = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    bank = mel_filter_bank()
    for hertz in (300.0, 1000.0, 5000.0):
        band = mel(torch.sin(2 * torch.pi * hertz * times)[None])[0, 20].argmax()
        wanted = bank[round(hertz / SAMPLE_RATE_HZ * MEL_WINDOW_SAMPLES)].argmax()
        assert abs(int(band) - int(wanted)) <= 1


def test_silence_is_the_floor(mel: LogMel) -> None:
    out = mel(torch.zeros(2, 3 * HOP_SAMPLES))
    torch.testing.assert_close(out, torch.full((2, 3, MEL_BANDS), float(np.log(LOG_FLOOR))))


def test_less_than_a_frame(mel: LogMel) -> None:
    assert mel(torch.zeros(2, HOP_SAMPLES - 1)).shape == (2, 0, MEL_BANDS)


def test_wrong_left_context(mel: LogMel) -> None:
    with pytest.raises(AssertionError, match="703"):
        mel(torch.zeros(1, HOP_SAMPLES), torch.zeros(1, 703))
