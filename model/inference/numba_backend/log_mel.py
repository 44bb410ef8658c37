"""Samples to the next log-mel frame."""

import math
from typing import Annotated, Any, NamedTuple

import numpy as np

from model.constants import HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, MEL_WINDOW_SAMPLES
from model.inference.numba_backend.arrays import Floats, Integers, Shape
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import ZERO, copy, f32
from model.lm.mel import LOG_FLOOR

HALF_WINDOW = MEL_WINDOW_SAMPLES // 2
FLOOR = f32(LOG_FLOOR)


class MelTables(NamedTuple):
    """The window, the filter bank with the range of bins that each band uses, and the transform's tables."""

    window: Annotated[Floats, Shape(MEL_WINDOW_SAMPLES)]
    bank: Annotated[Floats, Shape(MEL_BANDS, HALF_WINDOW + 1)]
    first: Annotated[Integers, Shape(MEL_BANDS)]
    last: Annotated[Integers, Shape(MEL_BANDS)]
    reversed: Annotated[Integers, Shape(HALF_WINDOW)]
    cos: Annotated[Floats, Shape(HALF_WINDOW)]
    sin: Annotated[Floats, Shape(HALF_WINDOW)]
    real_cos: Annotated[Floats, Shape(HALF_WINDOW + 1)]
    real_sin: Annotated[Floats, Shape(HALF_WINDOW + 1)]


@compiled
def magnitudes(signal: Any, tables: Any, real: Any, imaginary: Any, out: Any) -> None:
    """|DFT| of 1024 windowed samples, (1024,) -> (513,): a complex transform of 512 by radix 2, then its two halves.

    real, imaginary: buffers (512,)
    """
    half = HALF_WINDOW
    for i in range(half):
        j = 2 * tables.reversed[i]
        real[i] = signal[j] * tables.window[j]
        imaginary[i] = signal[j + 1] * tables.window[j + 1]
    # as `source_filter.transform`, each with a length that the compiler knows
    size = 2
    while size <= half:
        middle, stride = size // 2, half // size
        for start in range(0, half, size):
            for k in range(middle):
                c, s = tables.cos[k * stride], tables.sin[k * stride]
                i, j = start + k, start + k + middle
                a, b = real[j] * c - imaginary[j] * s, real[j] * s + imaginary[j] * c
                real[j], imaginary[j] = real[i] - a, imaginary[i] - b
                real[i] += a
                imaginary[i] += b
        size *= 2
    for k in range(half + 1):
        i, j = k % half, (half - k) % half
        # the transforms of the even and of the odd samples
        even_a, even_b = real[i] + real[j], imaginary[i] - imaginary[j]
        odd_a, odd_b = imaginary[i] + imaginary[j], real[j] - real[i]
        c, s = tables.real_cos[k], tables.real_sin[k]
        a, b = even_a + (odd_a * c - odd_b * s), even_b + (odd_a * s + odd_b * c)
        out[k] = f32(0.5) * f32(math.sqrt(a * a + b * b))


@compiled
def log_mel_frame(samples: Any, tables: Any, tails: Any, rows: Any, mel: Any) -> None:
    """The slice of each row's frame: samples (A, 320 or more) and the row's last 704, tails (R, 704) -> mel (A, 64)

    The tails move on.
    """
    window = np.empty(MEL_WINDOW_SAMPLES, np.float32)
    real, imaginary = np.empty(HALF_WINDOW, np.float32), np.empty(HALF_WINDOW, np.float32)
    bins = np.empty(HALF_WINDOW + 1, np.float32)
    for a in range(rows.shape[0]):
        tail = tails[rows[a]]
        copy(tail, window, MEL_LEFT_SAMPLES)
        copy(samples[a], window[MEL_LEFT_SAMPLES:], HOP_SAMPLES)
        copy(window[HOP_SAMPLES:], tail, MEL_LEFT_SAMPLES)
        magnitudes(window, tables, real, imaginary, bins)
        for band in range(MEL_BANDS):
            energy = ZERO
            for i in range(tables.first[band], tables.last[band]):
                energy += bins[i] * tables.bank[band, i]
            mel[a, band] = math.log(energy + FLOOR)
