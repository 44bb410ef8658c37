"""Codes to samples, a frame of each row at a time."""

from typing import Annotated, Any, NamedTuple

import numpy as np

from model.constants import HOP_SAMPLES, LATENT_DIM, VOCABULARY
from model.inference.numba_backend.arrays import Floats, Matrices, Shape
from model.inference.numba_backend.gemm import TILE, add_product
from model.inference.numba_backend.harmonics import HarmonicWeights, render_harmonics
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import copy, exp, f32, gelu, layer_norm
from model.inference.numba_backend.source_filter import SourceWeights, render_sources


class TrunkWeights(NamedTuple):
    """`model.codec.decoders.frame.FrameTrunk`: the first convolution, and all blocks behind each other."""

    entry: Annotated[Matrices, Shape("tiles", "latents seen", TILE)]  # inputs: frames, then channels
    entry_bias: Annotated[Floats, Shape("dim")]
    depthwise: Annotated[Floats, Shape("blocks", "kernel", "dim")]
    depthwise_bias: Annotated[Floats, Shape("blocks", "dim")]
    norm: Annotated[Floats, Shape("blocks", "dim")]
    norm_bias: Annotated[Floats, Shape("blocks", "dim")]
    expand: Annotated[Matrices, Shape("blocks", "wide tiles", "dim", TILE)]
    expand_bias: Annotated[Floats, Shape("blocks", "wide")]
    contract: Annotated[Matrices, Shape("blocks", "tiles", "wide", TILE)]
    contract_bias: Annotated[Floats, Shape("blocks", "dim")]
    scale: Annotated[Floats, Shape("blocks", "dim")]
    last_norm: Annotated[Floats, Shape("dim")]
    last_norm_bias: Annotated[Floats, Shape("dim")]


class DecoderWeights(NamedTuple):
    """Any decoder at 75 Hz. What its kind does not have is a small stand-in that is never read."""

    books: Annotated[Floats, Shape("books", VOCABULARY, LATENT_DIM)]
    trunk: TrunkWeights
    head: Annotated[Matrices, Shape("tiles", "dim", TILE)]
    head_bias: Annotated[Floats, Shape(HOP_SAMPLES)]
    gain: Annotated[Floats, Shape("dim")]
    gain_bias: np.float32
    is_harmonic: bool  # a `harmonic` decoder, which alone has a pitch estimator and harmonics
    pitch_estimator: TrunkWeights
    harmonics: HarmonicWeights
    is_source_filter: bool  # a `source_filter` decoder, which has sources and, of the rest, only books and trunk
    sources: SourceWeights


GAIN_MIN, GAIN_MAX = f32(-12.0), f32(2.0)


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
    """Codes (A, k) -> ``buffers.samples`` (A, 320 or more), by any decoder at 75 Hz; the rows move on.

    state: entries (R, kernel - 1, 128), histories and pitch_histories of `trunk`, oscillators, and sources.
    """
    count = codes.shape[0]
    windows, normed, samples = buffers.windows, buffers.normed, buffers.samples
    look_up(codes, weights.books, state.entries, rows, windows)
    trunk(windows, weights.trunk, state.histories, rows, buffers.x, normed, buffers.wide)
    if weights.is_source_filter:
        render_sources(normed, weights.sources, state.sources, rows, samples)
        return
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
    if weights.is_harmonic:
        trunk(windows, weights.pitch_estimator, state.pitch_histories, rows, buffers.x, normed, buffers.wide)
        render_harmonics(normed, weights.harmonics, state.oscillators, rows, buffers.logits, buffers.wide, samples)
