"""Elementary functions over arrays, in float32 and in a fixed order: the same bits for the same row, always.

Straight-line code that LLVM turns into vectors; no fast-math, so vectors and remainders round alike. Constants are
typed, because numba would compute float32 times a Python float in float64.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.inference.numba_backend.jit import compiled, inlined

f32 = np.float32
ZERO, HALF, ONE = f32(0.0), f32(0.5), f32(1.0)
SUMS = 16  # partial sums of a reduction: one a lane


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_half(typing_context: Any, value: Any) -> Any:
    """The bits of the float16 nearest to a float32, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


SPLIT = f32(8193.0)  # 2^13 + 1: Dekker's splitting leaves the 11 bits that a float16 has


def round_to_cache_dtype(ring: Any, value: Any) -> Any:
    """A float32 as a ring holds it: uint16 that is a float16, or float32 rounded alike.

    This is how Python does it; compiled code has `_round_to_cache_dtype`.
    """
    half = np.float16(value)
    return half.view(np.uint16) if ring.dtype == np.uint16 else f32(half)


@overload(round_to_cache_dtype)  # type: ignore[untyped-decorator]
def _round_to_cache_dtype(ring: Any, value: Any) -> Any:
    def half(ring: Any, value: Any) -> Any:
        return _as_half(value)

    def rounded(ring: Any, value: Any) -> Any:
        return value * SPLIT - (value * SPLIT - value)

    return half if ring.dtype == types.uint16 else rounded


LOG2_E = f32(1.4426950408889634)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)  # Cody and Waite: n times the first is exact
ROUND = f32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer
EXP_MIN, EXP_MAX = f32(-87.0), f32(88.0)
# exp(r) for |r| <= ln(2) / 2, by Taylor's series to r^6 with the last terms shifted towards minimax
EXP = tuple(f32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))


@inlined
def exp(x: Any) -> Any:
    """e^x, float32, within 2 ulp from -87 to 88; constant beyond (1.6e-38 and 1.7e38)."""
    x = min(max(x, EXP_MIN), EXP_MAX)
    whole = (x * LOG2_E + ROUND) - ROUND
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    p = EXP[0]
    p = p * r + EXP[1]
    p = p * r + EXP[2]
    p = p * r + EXP[3]
    p = p * r + EXP[4]
    p = p * r + EXP[5]
    p = p * (r * r) + r + ONE
    return p * _as_float(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))


# erf(x) = x P(x^2) / Q(x^2) for |x| <= 4, absolute error 7e-8 before rounding (the coefficients that Eigen and XLA use)
ERF_P = tuple(f32(c) for c in (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02))  # fmt: skip
ERF_Q = tuple(f32(c) for c in (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02))  # fmt: skip
ERF_MAX, ROOT_HALF = f32(4.0), f32(math.sqrt(0.5))


@inlined
def erf(x: Any) -> Any:
    """The error function, float32, within 4e-7."""
    x = min(max(x, -ERF_MAX), ERF_MAX)
    s = x * x
    # written out, as in `sine_cosine`: straight-line code is what becomes vectors, and what fixes the order
    p = ERF_P[0]
    p = p * s + ERF_P[1]
    p = p * s + ERF_P[2]
    p = p * s + ERF_P[3]
    p = p * s + ERF_P[4]
    p = p * s + ERF_P[5]
    p = p * s + ERF_P[6]
    q = ERF_Q[0]
    q = q * s + ERF_Q[1]
    q = q * s + ERF_Q[2]
    q = q * s + ERF_Q[3]
    q = q * s + ERF_Q[4]
    return x * p / q


# sin(t) = t S(t^2) and cos(t) = C(t^2) for |t| <= pi / 2, by Taylor's series: the next terms are below 6e-8
SINE = tuple(f32((-1) ** (n // 2) / math.factorial(n)) for n in (11, 9, 7, 5, 3, 1))
COSINE = tuple(f32((-1) ** (n // 2) / math.factorial(n)) for n in (12, 10, 8, 6, 4, 2, 0))
TURN = f32(2 * math.pi)


@inlined
def sine_cosine(turns: Any) -> Any:
    """Sine and cosine of an angle in turns from -1 to 1, float32, within 3e-7."""
    halves = (turns * f32(2.0) + ROUND) - ROUND  # whole half turns
    sign = ONE - f32(2.0) * abs(halves - f32(2.0) * ((halves * HALF + ROUND) - ROUND))
    t = (turns - HALF * halves) * TURN
    s = t * t
    # written out, as in `erf`
    p = SINE[0]
    p = p * s + SINE[1]
    p = p * s + SINE[2]
    p = p * s + SINE[3]
    p = p * s + SINE[4]
    p = p * s + SINE[5]
    q = COSINE[0]
    q = q * s + COSINE[1]
    q = q * s + COSINE[2]
    q = q * s + COSINE[3]
    q = q * s + COSINE[4]
    q = q * s + COSINE[5]
    q = q * s + COSINE[6]
    return sign * p * t, sign * q


@compiled
def copy(source: Any, target: Any, count: int) -> None:
    """The first ``count`` values of one array into another (an assignment to a slice takes 10 times as long to compile:
    it can fail, and words its error)."""
    for i in range(count):
        target[i] = source[i]


@compiled
def gelu(x: Any, width: int, rows: int) -> None:
    """x (R, W) -> x Phi(x), in place, the first ``width`` values of the first ``rows`` rows."""
    for row in range(rows):
        line = x[row]
        for i in range(width):
            value = line[i]
            line[i] = HALF * value * (ONE + erf(value * ROOT_HALF))


@compiled
def total(x: Any, count: int) -> Any:
    """The sum of the first ``count`` values of x (N,), in 16 partial sums: float32."""
    sums = np.zeros(SUMS, np.float32)
    whole = count // SUMS * SUMS
    for start in range(0, whole, SUMS):
        for lane in range(SUMS):
            sums[lane] += x[start + lane]
    result = ZERO
    for lane in range(SUMS):
        result += sums[lane]
    for i in range(whole, count):
        result += x[i]
    return result


@compiled
def squares(x: Any, shift: Any, count: int) -> Any:
    """The sum of (x - shift)^2 over the first ``count`` values of x (N,): float32."""
    sums = np.zeros(SUMS, np.float32)
    whole = count // SUMS * SUMS
    for start in range(0, whole, SUMS):
        for lane in range(SUMS):
            off = x[start + lane] - shift
            sums[lane] += off * off
    result = ZERO
    for lane in range(SUMS):
        result += sums[lane]
    for i in range(whole, count):
        off = x[i] - shift
        result += off * off
    return result


RMS_EPSILON, LAYER_EPSILON = f32(1e-6), f32(1e-5)


@compiled
def rms_norm(x: Any, weight: Any, out: Any, rows: int) -> None:
    """`model.lm.transformer.RMSNorm` of the first ``rows`` rows: x (R, W), weight (D,) -> out (R, W)"""
    width = weight.shape[0]
    for row in range(rows):
        scale = ONE / math.sqrt(squares(x[row], ZERO, width) / f32(width) + RMS_EPSILON)
        for i in range(width):
            out[row, i] = x[row, i] * f32(scale) * weight[i]


@compiled
def layer_norm(x: Any, weight: Any, bias: Any, out: Any, rows: int) -> None:
    """Layer norm of the first ``rows`` rows: x (R, W), weight and bias (D,) -> out (R, W)"""
    width = weight.shape[0]
    for row in range(rows):
        mean = f32(total(x[row], width) / f32(width))
        scale = f32(ONE / math.sqrt(squares(x[row], mean, width) / f32(width) + LAYER_EPSILON))
        for i in range(width):
            out[row, i] = (x[row, i] - mean) * scale * weight[i] + bias[i]
