"""Compiled sources and filters against those of `model.codec.decoders.source_filter`."""

from functools import partial

import numpy as np
import pytest
import torch

from model.codec.decoders.source_filter import BANDS, RESPONSE, SOURCES, SUBFRAMES, SourceFilterDecoder
from model.codec.decoders.source_filter import noise as torch_noise
from model.codec.encoders.spectral import NOTES
from model.constants import HOP_SAMPLES
from model.inference.numba_backend.gemm import add_product, pack
from model.inference.numba_backend.source_filter import (
    FILTERS,
    RESPONSE_WIDTH,
    Sources,
    SourceWeights,
    filtered,
    noise,
    pulses,
    render_sources,
)
from model.inference.numba_backend.weights import source_weights


@pytest.fixture(scope="module")
def decoder() -> SourceFilterDecoder:
    torch.manual_seed(0)
    made = SourceFilterDecoder(16, 1, 3, 7).eval().requires_grad_(False)
    made.head.weight.mul_(3)  # so that gains and levels move
    return made


@pytest.fixture(scope="module")
def weights(decoder: SourceFilterDecoder) -> SourceWeights:
    return source_weights(decoder, partial(pack, half=False))


def fresh(rows: int) -> Sources:
    return Sources(
        np.zeros(rows, np.int64), np.zeros(rows), np.zeros(rows), np.zeros((rows, SOURCES), np.float32),
        np.zeros((rows, NOTES), np.float32), np.zeros((rows, RESPONSE), np.float32),
    )  # fmt: skip


def test_pulses(decoder: SourceFilterDecoder) -> None:
    hertz = torch.from_numpy(np.random.default_rng(0).uniform(71, 480, 40))[None]
    wanted, end = decoder.pulses(hertz, decoder.start(hertz))
    phase, before, out = 0.0, float(hertz[0, 0]), np.empty(HOP_SAMPLES, np.float32)
    for frame in range(40):
        phase = pulses(phase, before, float(hertz[0, frame]), out)
        before = float(hertz[0, frame])
        own = wanted[0, frame * HOP_SAMPLES : (frame + 1) * HOP_SAMPLES].numpy()
        np.testing.assert_allclose(out, own, rtol=1e-3, atol=2e-3)  # peaks are 11 high
    assert phase == pytest.approx(float(end), abs=1e-9)


def test_noise_is_the_same_to_the_bit() -> None:
    out = np.empty(HOP_SAMPLES, np.float32)
    for first in (0, 320 * 77, 2**40):
        noise(first, out)
        np.testing.assert_array_equal(out, torch_noise(torch.tensor([first]), HOP_SAMPLES)[0].numpy())


def test_filters(decoder: SourceFilterDecoder, weights: SourceWeights) -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(1, SOURCES, HOP_SAMPLES, generator=generator)
    levels = torch.rand(1, SUBFRAMES, SOURCES, generator=generator)
    shapes = torch.randn(1, SUBFRAMES, SOURCES, BANDS, generator=generator)
    start = decoder.start(torch.full((1, 1), 100.0, dtype=torch.float64))
    start = start._replace(levels=torch.rand(1, SOURCES), ringing=torch.randn(1, RESPONSE, generator=generator))
    wanted, rings = decoder.filtered(source, levels, shapes, start)
    responses = np.zeros((FILTERS, RESPONSE_WIDTH), np.float32)
    add_product(np.ascontiguousarray(shapes.reshape(FILTERS, BANDS).numpy()), weights.responses, responses, FILTERS)
    out, ringing = np.zeros(HOP_SAMPLES, np.float32), start.ringing[0].numpy().copy()
    filtered(
        source[0, 0].numpy(), source[0, 1].numpy(), start.levels[0].numpy(), levels[0].numpy(), responses, weights,
        ringing, out,
    )  # fmt: skip
    np.testing.assert_allclose(out, wanted[0].numpy(), atol=2e-5)
    np.testing.assert_allclose(ringing, rings[0].numpy(), atol=2e-5)


def test_frames_one_by_one(decoder: SourceFilterDecoder, weights: SourceWeights) -> None:
    features = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(2))
    wanted, state = decoder.render(features)
    sources, rows, made = fresh(3), np.array([2, 0]), []
    for frame in range(30):
        out = np.zeros((2, 384), np.float32)
        render_sources(np.ascontiguousarray(features[:, frame].numpy()), weights, sources, rows, out)
        made.append(out[:, :HOP_SAMPLES])
    np.testing.assert_allclose(np.concatenate(made, 1), wanted[:, 0].numpy(), rtol=1e-3, atol=2e-4)
    for name, expected in zip(sources._fields, state, strict=True):
        own: np.ndarray = getattr(sources, name)
        np.testing.assert_allclose(own[rows], expected.numpy(), atol=1e-4, err_msg=name)
        assert not own[1].any(), f"a row that was not played moved: {name}"


def test_rows_do_not_hear_each_other(decoder: SourceFilterDecoder, weights: SourceWeights) -> None:
    features = np.random.default_rng(3).standard_normal((5, 16)).astype(np.float32)
    together, alone = np.zeros((5, 384), np.float32), np.zeros((1, 384), np.float32)
    render_sources(features, weights, fresh(5), np.arange(5), together)
    for row in range(5):
        alone[:] = 0
        render_sources(features[row : row + 1].copy(), weights, fresh(1), np.arange(1), alone)
        np.testing.assert_array_equal(together[row, :HOP_SAMPLES], alone[0, :HOP_SAMPLES])
