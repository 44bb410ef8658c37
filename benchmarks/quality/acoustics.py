"""Plain measures of sound: level, silence, tilt, pitch, and the Frechet distance between two sets of vectors."""

import warnings

import numpy as np
import numpy.typing as npt

from model.constants import SAMPLE_RATE_HZ

Signal = npt.NDArray[np.floating]
SILENCE_DB = -25.0  # under the prompt's level
FRAME = SAMPLE_RATE_HZ // 50  # 20 ms
TILT_BAND_HZ = (125.0, 6300.0)  # speech at hand comes from 16 kHz: nothing above 8 kHz
PITCH_HZ = (60.0, 500.0)


def level_db(signal: Signal) -> float:
    """Root mean square, dB relative to full scale; -100 at least."""
    return float(20 * np.log10(np.sqrt(np.mean(np.square(signal, dtype=np.float64))) + 1e-5))


def silence_ratio(signal: Signal, reference_db: float) -> float:
    """The share of 20 ms frames that lie more than 25 dB under a level."""
    frames = signal[: len(signal) // FRAME * FRAME].reshape(-1, FRAME)
    return float(np.mean([level_db(frame) < reference_db + SILENCE_DB for frame in frames]))


def tilt_db(signal: Signal) -> float:
    """Slope of the power spectrum over third-octaves from 125 Hz to 6.3 kHz, dB an octave (least squares)."""
    power = np.abs(np.fft.rfft(signal * np.hanning(len(signal)))) ** 2
    frequency = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE_HZ)
    edges = np.log2(TILT_BAND_HZ[0]) + np.arange(round(3 * np.log2(TILT_BAND_HZ[1] / TILT_BAND_HZ[0])) + 1) / 3
    bands = np.digitize(np.log2(np.maximum(frequency, 1.0)), edges)
    levels = [10 * np.log10(power[bands == band].mean() + 1e-9) for band in range(1, len(edges))]
    return float(np.polyfit(edges[:-1], levels, 1)[0])


def entropy(tokens: npt.NDArray[np.integer]) -> float:
    """Of the empirical distribution of some tokens, nats; of n tokens it is log n at most."""
    share = np.unique(tokens, return_counts=True)[1] / tokens.size
    return float(-(share * np.log(share)).sum())


def pitch(signal: Signal) -> npt.NDArray[np.float64]:
    """Fundamental frequency every 5 ms, Hz, 0 where unvoiced: WORLD's DIO, refined by StoneMask (package pyworld)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources
        import pyworld

    wave = np.ascontiguousarray(signal, dtype=np.float64)
    rough, times = pyworld.dio(wave, SAMPLE_RATE_HZ, f0_floor=PITCH_HZ[0], f0_ceil=PITCH_HZ[1])
    found: npt.NDArray[np.float64] = pyworld.stonemask(wave, rough, times, SAMPLE_RATE_HZ)
    return found


def voiced_ratio(f0: npt.NDArray[np.float64]) -> float:
    return float(np.mean(f0 > 0))


def pitch_range(f0: npt.NDArray[np.float64]) -> float | None:
    """From the 10th to the 90th percentile of voiced frames, semitones; None with fewer than 20 of them (0.1 s)."""
    voiced = f0[f0 > 0]
    if len(voiced) < 20:
        return None
    low, high = np.percentile(voiced, [10, 90])
    return float(12 * np.log2(high / low))


def moments(
    vectors: npt.NDArray[np.floating], shrink: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean (D,) and covariance (D, D) of rows; the covariance drawn towards a multiple of the unit matrix."""
    rows = np.asarray(vectors, dtype=np.float64)
    covariance = np.cov(rows, rowvar=False, bias=True)
    unit = np.eye(rows.shape[1]) * np.trace(covariance) / rows.shape[1]
    return rows.mean(0), (1 - shrink) * covariance + shrink * unit


def root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    made: npt.NDArray[np.float64] = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return made


def frechet(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating], shrink: float = 0.05) -> float:
    """Squared Frechet distance of Gaussians fitted to two sets of vectors (N, D), (M, D) (arXiv 1706.08500)."""
    (mean_a, a), (mean_b, b) = moments(one, shrink), moments(other, shrink)
    half = root(a)
    cross = np.trace(root(half @ b @ half))
    return max(0.0, float(np.square(mean_a - mean_b).sum() + np.trace(a) + np.trace(b) - 2 * cross))
