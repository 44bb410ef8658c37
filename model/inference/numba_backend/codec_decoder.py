"""Codes to samples to the next mel slice, a frame of each row at a time."""

import math
from collections import namedtuple
from typing import Any

import numpy as np

from model.constants import HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, MEL_WINDOW_SAMPLES
from model.inference.numba_backend.gemm import add_product
from model.inference.numba_backend.harmonics import voice
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import ZERO, copy, exp, f32, gelu, layer_norm
from model.lm.mel import LOG_FLOOR

# entry packed (tiles, kernel 128, 64), frames then channels; the rest of all blocks
TrunkWeights = namedtuple(
    "TrunkWeights",
    "entry entry_bias depthwise depthwise_bias norm norm_bias expand expand_bias contract contract_bias scale "
    "last_norm last_norm_bias",
)
# books (K, 1024, 128); reader and voice: of a `harmonic` decoder, never read unless it sings
DecoderWeights = namedtuple("DecoderWeights", "books trunk head head_bias gain gain_bias sings reader voice")
# window (1024,), bank (64, 513) with the range of bins that each band uses, and the transform's tables
MelTables = namedtuple("MelTables", "window bank first last reversed cos sin real_cos real_sin")
HALF_WINDOW = MEL_WINDOW_SAMPLES // 2
GAIN_MIN, GAIN_MAX = f32(-12.0), f32(2.0)
FLOOR = f32(LOG_FLOOR)


@compiled
def look_up(codes: Any, books: Any, entries: Any, rows: Any, windows: Any) -> None:
    """Codes (A, k) -> the latents that an entry sees, windows (A, kernel 128); entries (R, kernel - 1, 128) move on."""
    past, latent = entries.shape[1], entries.shape[2]
    for a in range(codes.shape[0]):
        window, row = windows[a], rows[a]
        for t in range(past):
            for c in range(latent):
                window[t * latent + c] = entries[row, t, c]
        start = past * latent
        for c in range(latent):
            window[start + c] = books[0, codes[a, 0], c]
        for book in range(1, codes.shape[1]):
            for c in range(latent):
                window[start + c] += books[book, codes[a, book], c]
        for t in range(past):
            for c in range(latent):
                entries[row, t, c] = window[(t + 1) * latent + c]


@compiled
def trunk(windows: Any, weights: Any, histories: Any, rows: Any, x: Any, normed: Any, wide: Any) -> None:
    """`FrameTrunk.features` of one frame, into ``normed``.

    histories (blocks, R, kernel - 1, dim) are what each row's convolutions saw last; they move on. x, normed, wide:
    buffers of A rows or more.
    """
    count = rows.shape[0]
    blocks, dim = weights.norm.shape
    past = histories.shape[2]
    for a in range(count):
        copy(weights.entry_bias, x[a], dim)
    add_product(windows, weights.entry, x, count)
    for block in range(blocks):
        taps, bias = weights.depthwise[block], weights.depthwise_bias[block]
        for a in range(count):
            history, line, out = histories[block, rows[a]], x[a], normed[a]
            for c in range(dim):
                out[c] = bias[c] + taps[past, c] * line[c]
            for t in range(past):
                for c in range(dim):
                    out[c] += taps[t, c] * history[t, c]
            for t in range(past - 1):
                for c in range(dim):
                    history[t, c] = history[t + 1, c]
            for c in range(dim):
                history[past - 1, c] = line[c]
        layer_norm(normed, weights.norm[block], weights.norm_bias[block], normed, count)
        hidden = weights.expand_bias.shape[1]
        for a in range(count):
            copy(weights.expand_bias[block], wide[a], hidden)
        add_product(normed, weights.expand[block], wide, count)
        gelu(wide, hidden, count)
        for a in range(count):
            copy(weights.contract_bias[block], normed[a], dim)
        add_product(wide, weights.contract[block], normed, count)
        scale = weights.scale[block]
        for a in range(count):
            for c in range(dim):
                x[a, c] += scale[c] * normed[a, c]
    layer_norm(x, weights.last_norm, weights.last_norm_bias, normed, count)


@compiled
def decode(codes: Any, weights: Any, state: Any, rows: Any, buffers: Any) -> None:
    """Codes (A, k) -> ``buffers.samples`` (A, 320 or more), by a `frame` or a `harmonic` decoder; the rows move on.

    state: entries (R, kernel - 1, 128), histories and reader_histories of `trunk`, and voices.
    """
    count = codes.shape[0]
    windows, normed, samples = buffers.windows, buffers.normed, buffers.samples
    look_up(codes, weights.books, state.entries, rows, windows)
    trunk(windows, weights.trunk, state.histories, rows, buffers.x, normed, buffers.wide)
    dim = weights.gain.shape[0]
    for a in range(count):
        copy(weights.head_bias, samples[a], HOP_SAMPLES)
    add_product(normed, weights.head, samples, count)
    for a in range(count):
        gain = weights.gain_bias
        for c in range(dim):
            gain += weights.gain[c] * normed[a, c]
        level = exp(min(max(gain, GAIN_MIN), GAIN_MAX))
        for i in range(HOP_SAMPLES):
            samples[a, i] *= level
    if weights.sings:
        trunk(windows, weights.reader, state.reader_histories, rows, buffers.x, normed, buffers.wide)
        voice(normed, weights.voice, state.voices, rows, buffers.logits, buffers.wide, samples)


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
def hear(samples: Any, tables: Any, tails: Any, rows: Any, mel: Any) -> None:
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
