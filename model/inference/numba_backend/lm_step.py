"""One step of the closed loop: token and slice in, codes, samples and the next slice out."""

from typing import Annotated, Any, NamedTuple

import numpy as np

from model.constants import HOP_SAMPLES, LATENT_DIM, MEL_BANDS, MEL_LEFT_SAMPLES, VOCABULARY
from model.inference.numba_backend.arrays import Floats, Integers, Matrices, Shape
from model.inference.numba_backend.attention import Rings, StackWeights, stack_step
from model.inference.numba_backend.codec_decoder import decode
from model.inference.numba_backend.gemm import TILE, add_product
from model.inference.numba_backend.harmonics import Oscillators
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.log_mel import log_mel_frame
from model.inference.numba_backend.math import ZERO, copy, gelu, rms_norm
from model.inference.numba_backend.sampler import LevelTables, draw
from model.inference.numba_backend.source_filter import Sources


class MelWeights(NamedTuple):
    """The mel blocks: (mel - mean) / deviation -> entry -> stack -> norm -> out. Of one band where a model has none."""

    mean: Annotated[Floats, Shape("bands")]
    deviation: Annotated[Floats, Shape("bands")]
    entry: Annotated[Matrices, Shape("tiles", "bands", TILE)]
    entry_bias: Annotated[Floats, Shape("dim")]
    stack: StackWeights
    norm: Annotated[Floats, Shape("dim")]
    out: Annotated[Matrices, Shape("out tiles", "dim", TILE)]


class ModelWeights(NamedTuple):
    """The transformer over coarse tokens; what the mel blocks put out stands behind the token's embedding."""

    uses_mel: bool
    window: int  # positions that a row attends to
    mel: MelWeights
    embedding: Annotated[Floats, Shape("tokens", "token dim")]  # one more than codes: what a clip begins with
    stack: StackWeights
    norm: Annotated[Floats, Shape("dim")]
    head: Annotated[Matrices, Shape("tiles", "dim", TILE)]
    levels: LevelTables


class FineWeights(NamedTuple):
    """The depth decoder: one part for each of the codebooks after the first, behind each other."""

    entry: Annotated[Matrices, Shape("tiles", "model dim", TILE)]
    previous_frame: Annotated[Floats, Shape("books before", "codes before", "dim before")]  # (0, 1, 1): there is none
    embeddings: Annotated[Floats, Shape("books", VOCABULARY, "dim")]
    norms: Annotated[Floats, Shape("books", "dim")]
    expands: Annotated[Matrices, Shape("books", "wide tiles", "dim", TILE)]
    contracts: Annotated[Matrices, Shape("books", "tiles", "wide", TILE)]  # wide: 2 dim
    head_norms: Annotated[Floats, Shape("books", "dim")]
    heads: Annotated[Matrices, Shape("books", "head tiles", "dim", TILE)]


class State(NamedTuple):
    """What a row goes on from, all rows of a backend; a step moves it on, in place."""

    codes: Annotated[Integers, Shape("rows", "codebooks")]  # of the last frame
    mel: Annotated[Floats, Shape("rows", MEL_BANDS)]  # the log-mel frame of the next position
    positions: Annotated[Integers, Shape("rows")]
    mel_rings: Rings
    rings: Rings
    entries: Annotated[Floats, Shape("rows", "past", LATENT_DIM)]  # latents that the decoder's first convolution sees
    histories: Annotated[Floats, Shape("blocks", "rows", "past", "frame dim")]  # of the trunk's convolutions
    pitch_histories: Annotated[Floats, Shape("pitch blocks", "rows", "past", "pitch dim")]  # of a harmonic decoder
    oscillators: Oscillators  # of a harmonic decoder
    sources: Sources  # of a source_filter decoder
    tails: Annotated[Floats, Shape("rows", MEL_LEFT_SAMPLES)]  # samples that the next mel window begins with


class Buffers(NamedTuple):
    """Room for what comes and goes within a step; widths are filled up to whole tiles."""

    x: Annotated[Floats, Shape("rows", "narrow")]
    normed: Annotated[Floats, Shape("rows", "narrow")]
    wide: Annotated[Floats, Shape("rows", "wide")]
    mixed: Annotated[Floats, Shape("rows", "narrow")]
    logits: Annotated[Floats, Shape("rows", VOCABULARY)]
    small: Annotated[Floats, Shape("rows", "mel")]
    scores: Annotated[Floats, Shape(1, "slots")]  # of one head of one row
    probabilities: Annotated[Floats, Shape(VOCABULARY)]  # of one row
    within: Annotated[Floats, Shape(VOCABULARY)]  # of one level
    work: Annotated[Floats, Shape(VOCABULARY)]
    windows: Annotated[Floats, Shape("rows", "latents seen")]
    samples: Annotated[Floats, Shape("rows", HOP_SAMPLES)]


@compiled
def embed_inputs(model: Any, state: Any, rows: Any, positions: Any, buffers: Any) -> None:
    """The input of the stack, into ``buffers.x``: the token's embedding, and what the mel blocks make of the mel."""
    count = rows.shape[0]
    x, small = buffers.x, buffers.small
    width = model.embedding.shape[1]
    for a in range(count):
        copy(model.embedding[state.codes[rows[a], 0]], x[a], width)
    if not model.uses_mel:
        return
    mel = model.mel
    features = model.norm.shape[0] - width
    dim = mel.norm.shape[0]
    for a in range(count):
        for band in range(MEL_BANDS):
            buffers.normed[a, band] = (state.mel[rows[a], band] - mel.mean[band]) / mel.deviation[band]
        small[a] = ZERO
        copy(mel.entry_bias, small[a], dim)
    add_product(buffers.normed, mel.entry, small, count)
    stack_step(
        small, mel.stack, state.mel_rings, rows, positions, model.window, buffers.normed, buffers.wide, buffers.mixed,
        buffers.scores,
    )  # fmt: skip
    rms_norm(small, mel.norm, buffers.normed, count)
    buffers.mixed[:count] = ZERO
    add_product(buffers.normed, mel.out, buffers.mixed, count)
    for a in range(count):
        copy(buffers.mixed[a], x[a, width:], features)


@compiled
def lm_logits(model: Any, state: Any, rows: Any, buffers: Any) -> None:
    """The stack's state after its last norm, into ``buffers.normed``, and logits of the coarse token."""
    count = rows.shape[0]
    positions = np.empty(count, np.int64)
    for a in range(count):
        positions[a] = state.positions[rows[a]]
    buffers.x[:count] = ZERO
    embed_inputs(model, state, rows, positions, buffers)
    stack_step(
        buffers.x, model.stack, state.rings, rows, positions, model.window, buffers.normed, buffers.wide,
        buffers.mixed, buffers.scores,
    )  # fmt: skip
    rms_norm(buffers.x, model.norm, buffers.normed, count)
    buffers.logits[:count] = ZERO
    add_product(buffers.normed, model.head, buffers.logits, count)


@compiled
def sample_codes(
    fine: Any, levels: Any, options: Any, before: Any, rows: Any, uniforms: Any, buffers: Any, codes: Any,
    logprobs: Any,
) -> None:  # fmt: skip
    """Draws all codes of a frame: uniforms (A, K) -> codes and log-probabilities (A, K). Starts from `lm_logits`.

    ``before`` (rows, K): the codes of each row's last frame. ``levels``: of the coarse tokens; fine ones have none.
    """
    count, books = uniforms.shape
    sums, normed, wide = buffers.x, buffers.normed, buffers.wide
    dim = fine.norms.shape[1]
    sums[:count] = ZERO
    if books > 1:
        add_product(normed, fine.entry, sums, count)
        for book in range(min(books, fine.previous_frame.shape[0])):
            for a in range(count):
                embedding_before = fine.previous_frame[book, before[rows[a], book]]
                for i in range(dim):
                    sums[a, i] += embedding_before[i]
    for book in range(books):
        if book > 0:
            for a in range(count):
                embedding = fine.embeddings[book - 1, codes[a, book - 1]]
                for i in range(dim):
                    sums[a, i] += embedding[i]
            rms_norm(sums, fine.norms[book - 1], normed, count)
            wide[:count] = ZERO
            add_product(normed, fine.expands[book - 1], wide, count)
            gelu(wide, 2 * dim, count)
            for a in range(count):
                copy(sums[a], buffers.mixed[a], dim)
            add_product(wide, fine.contracts[book - 1], buffers.mixed, count)
            rms_norm(buffers.mixed, fine.head_norms[book - 1], normed, count)
            buffers.logits[:count] = ZERO
            add_product(normed, fine.heads[book - 1], buffers.logits, count)
        for a in range(count):
            row = rows[a]
            codes[a, book], logprobs[a, book] = draw(
                buffers.logits[a], VOCABULARY, options, row, book == 0, levels, uniforms[a, book],
                buffers.probabilities, buffers.within, buffers.work,
            )  # fmt: skip


@compiled
def step(
    model: Any, fine: Any, decoder: Any, tables: Any, state: Any, options: Any, rows: Any, uniforms: Any,
    buffers: Any, codes: Any, logprobs: Any, mel: Any,
) -> None:  # fmt: skip
    """One frame of each of ``rows`` (A,) int64; the rows' state moves on.

    Fills codes (A, K) int64, logprobs (A, K), mel (A, 64) and ``buffers.samples`` (A, 320).
    """
    lm_logits(model, state, rows, buffers)
    sample_codes(fine, model.levels, options, state.codes, rows, uniforms, buffers, codes, logprobs)
    decode(codes, decoder, state, rows, buffers)
    log_mel_frame(buffers.samples, tables, state.tails, rows, mel)
    for a in range(rows.shape[0]):
        row = rows[a]
        for book in range(codes.shape[1]):
            state.codes[row, book] = codes[a, book]
        copy(mel[a], state.mel[row], MEL_BANDS)
        state.positions[row] += 1
