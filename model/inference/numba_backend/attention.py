"""One position of a stack of blocks, for rows that each stand at a position of their own."""

import math
from typing import Annotated, Any, NamedTuple

import numpy as np

from model.inference.numba_backend.arrays import Floats, Matrices, Shape
from model.inference.numba_backend.gemm import TILE, add_product, add_row
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import ONE, ZERO, copy, exp, f32, gelu, rms_norm, round_to_cache_dtype
from model.lm.rotary import ROPE_BASE


class StackWeights(NamedTuple):
    """A stack of blocks (`model.lm.transformer.Stack`): all layers behind each other, matrices packed (`gemm.pack`)."""

    attention_norm: Annotated[Floats, Shape("layers", "dim")]
    qkv: Annotated[Matrices, Shape("layers", "qkv tiles", "dim", TILE)]  # queries, keys, values: 3 dim outputs
    out: Annotated[Matrices, Shape("layers", "tiles", "dim", TILE)]
    feed_norm: Annotated[Floats, Shape("layers", "dim")]
    expand: Annotated[Matrices, Shape("layers", "wide tiles", "dim", TILE)]
    contract: Annotated[Matrices, Shape("layers", "tiles", "wide", TILE)]  # wide: 4 dim


class Rings(NamedTuple):
    """Keys and values of a stack, in tiles that a product reads from end to end.

    Slots are filled up to whole tiles. Rings hold float16 as uint16 where the processor widens it: with many rows, a
    step's time is the reading of its rings.
    """

    keys: Annotated[Matrices, Shape("layers", "rows", "heads", "slot tiles", "width", TILE)]  # slots last
    values: Annotated[Matrices, Shape("layers", "rows", "heads", 1, "window", TILE)]  # a head's width, and zeros, last


LANES = 16
MINUS_INFINITY = f32(-np.inf)


@compiled
def rotations(positions: Any, width: int, cos: Any, sin: Any) -> None:
    """Cosines and sines of rotary embedding for positions (A,) int64 -> (A, width // 2) each, by float64 angles."""
    for a in range(positions.shape[0]):
        for i in range(width // 2):
            angle = positions[a] * ROPE_BASE ** (-2.0 * i / width)
            cos[a, i] = math.cos(angle)
            sin[a, i] = math.sin(angle)


@compiled
def _softmax(scores: Any, count: int, padded: int) -> None:
    """Softmax of the first ``count`` scores, in place; up to ``padded`` (a multiple of 16) they become 0."""
    for i in range(count, padded):
        scores[i] = MINUS_INFINITY
    peaks = np.full(LANES, MINUS_INFINITY)
    for start in range(0, padded, LANES):
        for lane in range(LANES):
            peaks[lane] = max(peaks[lane], scores[start + lane])
    peak = MINUS_INFINITY
    for lane in range(LANES):
        peak = max(peak, peaks[lane])
    for i in range(padded):
        scores[i] = exp(scores[i] - peak)
    for i in range(count, padded):
        scores[i] = ZERO
    sums = np.zeros(LANES, np.float32)
    for start in range(0, padded, LANES):
        for lane in range(LANES):
            sums[lane] += scores[start + lane]
    whole = ZERO
    for lane in range(LANES):
        whole += sums[lane]
    scale = ONE / whole
    for i in range(padded):
        scores[i] *= scale


@compiled
def _attend(query: Any, keys: Any, values: Any, count: int, scores: Any, out: Any) -> None:
    """One head of one row: query (1, D), scaled; ``count`` valid slots -> out (1, 64). scores: (1, window) buffer"""
    tiles = (count + TILE - 1) // TILE
    scores[0, : tiles * TILE] = ZERO
    add_row(query, keys[:tiles], scores)
    _softmax(scores[0], count, (count + LANES - 1) // LANES * LANES)
    out[:] = ZERO
    add_row(scores, values[:, :count], out)


@compiled
def stack_step(
    x: Any, weights: Any, rings: Any, rows: Any, positions: Any, window: int, normed: Any, wide: Any, mixed: Any,
    scores: Any,
) -> None:  # fmt: skip
    """x (A, W): one position of each row goes through all blocks, in place, and is added to the row's rings.

    rows and positions (A,) int64; window: positions that a row attends to; normed, wide, mixed: buffers of A rows or
    more; scores (1, window, filled up to a multiple of 64).
    """
    count = rows.shape[0]
    layers, dim = weights.attention_norm.shape
    heads = rings.keys.shape[2]
    width = dim // heads
    scale = f32(1.0 / math.sqrt(width))
    half = width // 2
    cos, sin = np.empty((count, half), np.float32), np.empty((count, half), np.float32)
    rotations(positions, width, cos, sin)
    query, out = np.empty((1, width), np.float32), np.empty((1, TILE), np.float32)
    for layer in range(layers):
        rms_norm(x, weights.attention_norm[layer], normed, count)
        wide[:count] = ZERO
        add_product(normed, weights.qkv[layer], wide, count)
        for a in range(count):
            slot = positions[a] % window
            valid = min(positions[a] + 1, window)
            for head in range(heads):
                keys, values = rings.keys[layer, rows[a], head], rings.values[layer, rows[a], head]
                q, k, v = head * width, dim + head * width, 2 * dim + head * width
                tile, lane = slot // TILE, slot % TILE
                for i in range(half):
                    c, s = cos[a, i], sin[a, i]
                    query[0, i] = (wide[a, q + i] * c - wide[a, q + half + i] * s) * scale
                    query[0, half + i] = (wide[a, q + i] * s + wide[a, q + half + i] * c) * scale
                    keys[tile, i, lane] = round_to_cache_dtype(keys, wide[a, k + i] * c - wide[a, k + half + i] * s)
                    keys[tile, half + i, lane] = round_to_cache_dtype(
                        keys, wide[a, k + i] * s + wide[a, k + half + i] * c
                    )
                for i in range(width):
                    values[0, slot, i] = round_to_cache_dtype(values, wide[a, v + i])
                _attend(query, keys, values, valid, scores, out)
                copy(out[0], mixed[a, head * width :], width)
        add_product(mixed, weights.out[layer], x, count)
        rms_norm(x, weights.feed_norm[layer], normed, count)
        wide[:count] = ZERO
        add_product(normed, weights.expand[layer], wide, count)
        gelu(wide, 4 * dim, count)
        add_product(wide, weights.contract[layer], x, count)
