"""Samples to codes: EnCodec's SEANet encoder and its quantiser, chunk by chunk.

Activations lie time first, (T, C), so that a convolution of kernel k and stride s is a product whose rows overlap: row
t begins s C values after row t - 1 and is k C long. Each convolution has the last k - s steps of its input in the
clip's history. Sums have a fixed order, so the size of the chunks is no part of the result, to the bit.
"""

from typing import Annotated, Any, NamedTuple

from model.constants import HOP_SAMPLES, LATENT_DIM, VOCABULARY
from model.inference.numba_backend.arrays import Floats, Matrices, Shape
from model.inference.numba_backend.gemm import NARROW, TILE, add_narrow, add_product
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import ONE, ZERO, copy, exp, f32
from model.inference.numba_backend.sampler import largest

TWO = f32(2.0)
ENTRY_KERNEL, RESIDUAL_KERNEL, LAST_KERNEL = 7, 3, 7
FEW, MANY = 2, 16  # frames at a time at the high rates and at the low ones: what fits the second-level cache
HIGH_LEVELS = 2  # levels that work on FEW frames


class Level(NamedTuple):
    """A residual block, then a convolution that divides the rate. Biases are filled up to whole tiles."""

    channels: int
    ratio: int
    at: int  # where its history begins
    squeeze: Annotated[Matrices, Shape("half tiles", "seen", "half tile")]
    squeeze_bias: Annotated[Floats, Shape("half")]
    widen: Annotated[Matrices, Shape("tiles", "half channels", "tile")]
    shortcut: Annotated[Matrices, Shape("tiles", "channels", "tile")]
    bias: Annotated[Floats, Shape("whole")]  # of both branches
    down: Annotated[Matrices, Shape("next tiles", "next seen", "next tile")]
    down_bias: Annotated[Floats, Shape("next")]


class EncoderWeights(NamedTuple):
    """SEANet's encoder and the quantiser."""

    entry: Annotated[Matrices, Shape("entry tiles", ENTRY_KERNEL, "entry tile")]
    entry_bias: Annotated[Floats, Shape("entry")]
    levels: tuple[Level, ...]
    lstm_in: Annotated[Matrices, Shape("layers", "gate tiles", "top", TILE)]
    lstm_own: Annotated[Matrices, Shape("layers", "gate tiles", "top", TILE)]
    lstm_bias: Annotated[Floats, Shape("layers", "gates")]
    lstm_at: int  # where the history of h and c begins, layer by layer
    last: Annotated[Matrices, Shape("last tiles", "last seen", "last tile")]
    last_bias: Annotated[Floats, Shape("last")]
    last_at: int  # where the history of the last convolution begins
    packed_books: Annotated[Matrices, Shape("books", "book tiles", LATENT_DIM, TILE)]
    norms: Annotated[Floats, Shape("books", VOCABULARY)]  # -|entry|^2 / 2
    books: Annotated[Floats, Shape("books", VOCABULARY, LATENT_DIM)]


class Room(NamedTuple):
    """The input of a level and its buffers; the last one is that of the LSTM and what follows."""

    x: Annotated[Floats, Shape("steps", "filled")]
    line: Annotated[Floats, Shape("values")]
    hidden: Annotated[Floats, Shape("steps", "half filled")]
    y: Annotated[Floats, Shape("steps", "filled")]


@compiled
def _product(x: Any, w: Any, y: Any, rows: int) -> None:
    if w.shape[2] == NARROW:
        add_narrow(x, w, y, rows)
    else:
        add_product(x, w, y, rows)


@compiled
def _fill(y: Any, bias: Any, rows: int) -> None:
    for row in range(rows):
        copy(bias, y[row], bias.shape[0])


@compiled
def _elu(x: Any, width: int, rows: int, out: Any) -> None:
    """x (R, W or more) -> out (R W,), without gaps"""
    for row in range(rows):
        line, start = x[row], row * width
        for i in range(width):
            value = line[i]
            out[start + i] = value if value > ZERO else exp(value) - ONE


@compiled
def _remember(x: Any, width: int, rows: int, history: Any, line: Any) -> None:
    """ELU of x (R, W) behind what the history holds, into ``line``, the end of which becomes the history."""
    past = history.shape[0]
    copy(history, line, past)
    _elu(x, width, rows, line[past:])
    copy(line[rows * width :], history, past)


@compiled
def _level(weights: Any, history: Any, x: Any, rows: int, line: Any, hidden: Any, y: Any, out: Any) -> None:
    """x (R, C) -> out (R / ratio, 2 C); line, hidden, y: buffers"""
    channels, ratio, at = weights.channels, weights.ratio, weights.at
    middle = at + (RESIDUAL_KERNEL - 1) * channels
    _remember(x, channels, rows, history[at:middle], line)
    _fill(hidden, weights.squeeze_bias, rows)
    _product(line[: rows * channels].reshape(rows, channels), weights.squeeze, hidden, rows)
    width = weights.widen.shape[1]
    for row in range(rows):
        values = hidden[row]
        for i in range(width):
            value = values[i]
            values[i] = value if value > ZERO else exp(value) - ONE
    _fill(y, weights.bias, rows)
    _product(x, weights.shortcut, y, rows)
    _product(hidden, weights.widen, y, rows)
    _remember(y, channels, rows, history[middle : middle + ratio * channels], line)
    rows //= ratio
    _fill(out, weights.down_bias, rows)
    _product(line[: rows * ratio * channels].reshape(rows, ratio * channels), weights.down, out, rows)


@compiled
def _lstm(own: Any, width: int, rows: int, state: Any, gates: Any, out: Any) -> None:
    """A layer: gates (R, 4 W) hold what the inputs say; state (2 W,) is h, then c -> out (R, W)"""
    h, c = state[:width].reshape(1, width), state[width:]
    for row in range(rows):
        gate = gates[row : row + 1]
        add_product(h, own, gate, 1)
        for i in range(width):
            enter = ONE / (ONE + exp(-gate[0, i]))
            keep = ONE / (ONE + exp(-gate[0, width + i]))
            new = ONE - TWO / (exp(TWO * gate[0, 2 * width + i]) + ONE)  # tanh
            show = ONE / (ONE + exp(-gate[0, 3 * width + i]))
            cell = keep * c[i] + enter * new
            c[i] = cell
            h[0, i] = show * (ONE - TWO / (exp(TWO * cell) + ONE))
        copy(h[0], out[row], width)


@compiled
def quantise(latents: Any, weights: Any, rows: int, scores: Any, codes: Any, first: int) -> None:
    """latents (R, 128 or more), which become what is left over -> codes (K, ...) from frame ``first`` on"""
    books, _, width = weights.books.shape
    for book in range(books):
        _fill(scores, weights.norms[book], rows)
        add_product(latents, weights.packed_books[book], scores, rows)
        for row in range(rows):
            peak, code = largest(scores[row], VOCABULARY), 0
            while code < VOCABULARY - 1 and scores[row, code] < peak:
                code += 1
            codes[book, first + row] = code
            for i in range(width):
                latents[row, i] -= weights.books[book, code, i]


@compiled
def _begin(samples: Any, weights: Any, history: Any, sound: Any, x: Any, rows: int) -> None:
    """The first convolution: samples (rows or more,) -> x (rows, C)"""
    past = ENTRY_KERNEL - 1
    copy(history, sound, past)
    copy(samples, sound[past:], rows)
    copy(sound[rows:], history, past)
    _fill(x, weights.entry_bias, rows)
    _product(sound[:rows].reshape(rows, 1), weights.entry, x, rows)


@compiled
def _end(weights: Any, history: Any, room: Any, rows: int, gates: Any, latents: Any) -> None:
    """LSTM and last convolution: room.x (rows, C) -> latents (rows, 128)"""
    layers, width = weights.lstm_in.shape[0], weights.lstm_in.shape[2]
    source = room.x
    for layer in range(layers):
        at = weights.lstm_at + layer * 2 * width
        _fill(gates, weights.lstm_bias[layer], rows)
        add_product(source, weights.lstm_in[layer], gates, rows)
        _lstm(weights.lstm_own[layer], width, rows, history[at : at + 2 * width], gates, room.y)
        source = room.y
    if layers > 0:
        for row in range(rows):
            for i in range(width):
                room.y[row, i] += room.x[row, i]
    past = (LAST_KERNEL - 1) * width
    _remember(source, width, rows, history[weights.last_at : weights.last_at + past], room.line)
    _fill(latents, weights.last_bias, rows)
    _product(room.line[: rows * width].reshape(rows, width), weights.last, latents, rows)


@compiled
def encode(
    samples: Any, weights: Any, history: Any, sound: Any, rooms: Any, gates: Any, latents: Any, scores: Any, codes: Any
) -> None:
    """Samples (320 n,) -> codes (K, n) int64. ``history`` (H,) moves on; the rest are buffers."""
    levels = len(weights.levels)
    frames = samples.shape[0] // HOP_SAMPLES
    for first in range(0, frames, MANY):
        many, done = min(MANY, frames - first), 0
        while done < many:
            few = min(FEW, many - done)
            rows = few * HOP_SAMPLES
            _begin(samples[(first + done) * HOP_SAMPLES :], weights, history, sound, rooms[0].x, rows)
            for index in range(HIGH_LEVELS):
                level, room, out = weights.levels[index], rooms[index], rooms[index + 1].x
                rate = rows // few // level.ratio
                target = out[done * rate :] if index == HIGH_LEVELS - 1 else out
                _level(level, history, room.x, rows, room.line, room.hidden, room.y, target)
                rows = few * rate
            done += few
        rows = rows // few * many
        for index in range(HIGH_LEVELS, levels):
            level, room = weights.levels[index], rooms[index]
            _level(level, history, room.x, rows, room.line, room.hidden, room.y, rooms[index + 1].x)
            rows //= level.ratio
        _end(weights, history, rooms[levels], many, gates, latents)
        quantise(latents, weights, many, scores, codes, first)
