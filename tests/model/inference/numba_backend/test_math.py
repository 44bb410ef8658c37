"""Elementary functions against references in double precision."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model.inference.numba_backend import math as functions
from model.inference.numba_backend.jit import compiled
from model.lm.kv_cache import round_to_cache_dtype


@compiled
def each_exp(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        out[i] = functions.exp(x[i])


@compiled
def each_erf(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        out[i] = functions.erf(x[i])


@compiled
def each_kept(ring: Any, x: Any) -> None:
    for i in range(x.shape[0]):
        ring[i] = functions.round_to_cache_dtype(ring, x[i])


def test_what_rings_hold_is_rounded_to_float16() -> None:
    """Both forms: as float16, and as float32 for processors that cannot widen it (there without subnormals)."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(200_000) * 10.0 ** rng.uniform(-4, 3, 200_000)).astype(np.float32)
    ties = (1 + (np.arange(2048) + 0.5) / 1024).astype(np.float32)  # half way between two: to the even one
    x = np.concatenate([x, ties, -ties, np.array([0.0, -0.0, 6e-8, 65504.0], np.float32)])
    halves, floats = np.empty(x.shape, np.uint16), np.empty_like(x)
    each_kept(halves, x)
    each_kept(floats, x)
    np.testing.assert_array_equal(halves, x.astype(np.float16).view(np.uint16))
    normal = np.abs(x) >= 2**-14
    np.testing.assert_array_equal(floats[normal], x[normal].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(halves, round_to_cache_dtype(torch.from_numpy(x)).half().numpy().view(np.uint16))
    for ring in (halves, floats):
        plain = np.array([functions.round_to_cache_dtype(ring, value) for value in x[:1000]], ring.dtype)
        np.testing.assert_array_equal(plain[normal[:1000]], ring[:1000][normal[:1000]])


def test_exp() -> None:
    x = np.linspace(-87, 88, 200_003).astype(np.float32)
    out = np.empty_like(x)
    each_exp(x, out)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 2.5e-7  # two units in the last place
    edges = np.array([0.0, -0.0, -np.inf, np.inf, -200.0, 200.0], np.float32)
    out = np.empty_like(edges)
    each_exp(edges, out)
    assert out[0] == out[1] == 1.0
    assert 0.0 < out[2] < 2e-38 and out[4] == out[2]
    assert 1e38 < out[3] < np.inf and out[5] == out[3]


def test_erf() -> None:
    x = np.linspace(-6, 6, 100_003).astype(np.float32)
    out = np.empty_like(x)
    each_erf(x, out)
    exact = np.array([math.erf(value) for value in x])
    assert np.abs(out - exact).max() < 4e-7
    assert np.abs(out).max() <= 1 + 1e-6


def rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((count, width)).astype(np.float32) * 3


def test_gelu() -> None:
    x = rows(3, 64)
    before = x.copy()
    functions.gelu(x, 50, 2)
    np.testing.assert_allclose(x[:2, :50], F.gelu(torch.from_numpy(before))[:2, :50].numpy(), atol=2e-6)
    np.testing.assert_array_equal(x[2], before[2])
    np.testing.assert_array_equal(x[:, 50:], before[:, 50:])


def test_norms() -> None:
    for width in (7, 16, 50, 256):
        x, weight, bias = rows(3, 300), rows(1, width)[0], rows(2, width)[1]
        out = np.zeros_like(x)
        functions.rms_norm(x, weight, out, 2)
        there = torch.from_numpy(x[:, :width])
        expected = F.rms_norm(there, (width,), torch.from_numpy(weight), 1e-6)
        np.testing.assert_allclose(out[:2, :width], expected[:2].numpy(), rtol=1e-5, atol=1e-5)
        assert not out[2].any() and not out[:, width:].any()
        functions.layer_norm(x, weight, bias, out, 2)
        expected = F.layer_norm(there, (width,), torch.from_numpy(weight), torch.from_numpy(bias))
        np.testing.assert_allclose(out[:2, :width], expected[:2].numpy(), rtol=1e-5, atol=1e-5)


def test_sums() -> None:
    x = rows(1, 1000)[0]
    for count in (0, 1, 15, 16, 17, 1000):
        assert math.isclose(functions.total(x, count), x[:count].astype(np.float64).sum(), abs_tol=1e-3)
        off = x[:count].astype(np.float64) - 0.5
        assert math.isclose(functions.squares(x, np.float32(0.5), count), (off**2).sum(), rel_tol=1e-5)
