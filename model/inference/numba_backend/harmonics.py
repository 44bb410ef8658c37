"""What a `harmonic` decoder does with a frame, `model.codec.decoders.harmonic`: a share of its lines goes to sines."""

import math
from typing import Annotated, Any, NamedTuple

import numpy as np

from model.codec.decoders.harmonic import (
    HARMONICS,
    LINE_HZ,
    LINES,
    NEAR_BINS,
    PITCH_BINS,
    POWER_FLOOR,
    RAMP,
    SHARE_FROM,
    SHARE_MAX,
)
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.numba_backend.arrays import Doubles, Floats, Matrices, Shape
from model.inference.numba_backend.gemm import TILE, add_product
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import ONE, ZERO, copy, exp, f32, sine_cosine


class HarmonicWeights(NamedTuple):
    """What makes harmonics of a frame: heads of the pitch estimator, and the transform between samples and lines."""

    heads: Annotated[Matrices, Shape("tiles", "dim", TILE)]  # of the bins of pitch, then of the bands' shares
    heads_bias: Annotated[Floats, Shape("outputs")]
    log_hertz: Annotated[Doubles, Shape(PITCH_BINS)]
    shapes: Annotated[Floats, Shape("bands", LINES)]
    waves: Annotated[Floats, Shape("line tiles", HOP_SAMPLES, TILE)]  # samples to cosines, then sines, of the lines
    back: Annotated[Floats, Shape("sample tiles", 2 * LINES, TILE)]


class Oscillators(NamedTuple):
    """Of each row: where its oscillators stand."""

    phases: Annotated[Doubles, Shape("rows")]  # cycles
    hertz: Annotated[Doubles, Shape("rows")]
    amplitudes: Annotated[Floats, Shape("rows", HARMONICS)]


_NARROW = f32(LINE_HZ)
_SCALE = f32(2 / HOP_SAMPLES)
_POWER_SCALE = f32((2 / HOP_SAMPLES) ** 2)
_FROM, _SPAN = f32(SHARE_FROM), f32(SHARE_MAX / (1 - SHARE_FROM))
_FLOOR, _ROOT = f32(POWER_FLOOR), f32(math.sqrt(POWER_FLOOR))
_ARRIVED = np.minimum(np.arange(1, HOP_SAMPLES + 1, dtype=np.float32) / f32(RAMP), f32(1.0))
_N = np.arange(1, HOP_SAMPLES + 1, dtype=np.float64)
_BEHIND = np.minimum(_N, RAMP) - np.minimum(_N, RAMP) ** 2 / (2 * RAMP)  # of a step in pitch, in samples


@compiled
def pitch(logits: Any, log_hertz: Any) -> Any:
    """`PitchEstimator.pitch` of one frame: logits (PITCH_BINS or more,) -> Hz, float64"""
    best = 0
    for i in range(1, PITCH_BINS):
        if logits[i] > logits[best]:
            best = i
    total, mean = 0.0, 0.0
    for i in range(max(best - NEAR_BINS, 0), min(best + NEAR_BINS + 1, PITCH_BINS)):
        probability = math.exp(np.float64(logits[i]) - np.float64(logits[best]))
        total += probability
        mean += probability * (log_hertz[i] - log_hertz[best])
    return math.exp(log_hertz[best] + mean / total)


@compiled
def gather(power: Any, hertz: Any, amplitudes: Any) -> None:
    """Power of the lines (LINES,) -> amplitudes of the harmonics (HARMONICS,): a triangle each, as wide as the pitch"""
    for k in range(HARMONICS):
        centre = f32(k + 1) * hertz
        first, last = math.ceil((centre - hertz) / _NARROW), math.floor((centre + hertz) / _NARROW)
        total = ZERO
        for line in range(max(first, 1), min(last, LINES) + 1):
            weight = ONE - abs(f32(line) * _NARROW - centre) / hertz
            total += max(weight, ZERO) * power[line - 1]
        amplitudes[k] = f32(math.sqrt(total + _FLOOR)) - _ROOT


@compiled
def synthesise_harmonics(start: Any, before: Any, hertz: Any, old: Any, new: Any, out: Any) -> Any:
    """Adds one frame of sines to out (320 or more,) and returns the phase at its end, float64 cycles below 1.

    start: the phase; before, hertz: the pitch at the start and after the ramp, float64; old, new: (HARMONICS,)
    """
    step = hertz - before
    last = HARMONICS
    while last > 0 and old[last - 1] == ZERO and new[last - 1] == ZERO:
        last -= 1
    s1, c1 = np.empty(HOP_SAMPLES, np.float32), np.empty(HOP_SAMPLES, np.float32)
    s, c = np.empty(HOP_SAMPLES, np.float32), np.empty(HOP_SAMPLES, np.float32)
    for n in range(HOP_SAMPLES):
        turned = start + (hertz * _N[n] - step * _BEHIND[n]) / SAMPLE_RATE_HZ
        s1[n], c1[n] = sine_cosine(f32(turned - math.floor(turned)))
        s[n], c[n] = s1[n], c1[n]
    for k in range(last):
        level, change = old[k], new[k] - old[k]
        for n in range(HOP_SAMPLES):
            out[n] += (level + _ARRIVED[n] * change) * s[n]
            turned_s, turned_c = s[n] * c1[n] + c[n] * s1[n], c[n] * c1[n] - s[n] * s1[n]
            s[n], c[n] = turned_s, turned_c
    end = start + (hertz * HOP_SAMPLES - step * (RAMP / 2)) / SAMPLE_RATE_HZ
    return end - math.floor(end)


@compiled
def render_harmonics(
    features: Any, weights: Any, oscillators: Any, rows: Any, logits: Any, lines: Any, samples: Any
) -> None:
    """`HarmonicDecoder.render` of one frame, in place: the pitch estimator's features (A, dim), samples (A, 320...).

    The rows' oscillators move on. logits, lines: buffers of A rows or more, of 192 values or more.
    """
    count = rows.shape[0]
    hertz = np.empty(count, np.float64)
    share = np.empty(LINES, np.float32)
    amplitudes = np.empty(HARMONICS, np.float32)
    bands = weights.shapes.shape[0]
    for a in range(count):
        copy(weights.heads_bias, logits[a], PITCH_BINS + bands)
        for line in range(2 * LINES):
            lines[a, line] = ZERO
    add_product(features, weights.heads, logits, count)
    add_product(samples, weights.waves, lines, count)
    power = np.empty((count, LINES), np.float32)
    for a in range(count):
        hertz[a] = pitch(logits[a], weights.log_hertz)
        for line in range(LINES):
            share[line] = ZERO
        for band in range(bands):
            probability = ONE / (ONE + exp(-logits[a, PITCH_BINS + band]))
            part = max(probability - _FROM, ZERO) * _SPAN
            for line in range(LINES):
                share[line] += part * weights.shapes[band, line]
        for line in range(LINES):
            x, y = lines[a, line], lines[a, LINES + line]
            power[a, line] = share[line] * (x * x + y * y) * _POWER_SCALE
            taken = (f32(math.sqrt(ONE - share[line])) - ONE) * _SCALE
            lines[a, line], lines[a, LINES + line] = taken * x, taken * y
    add_product(lines, weights.back, samples, count)
    for a in range(count):
        row = rows[a]
        gather(power[a], f32(hertz[a]), amplitudes)
        old = oscillators.amplitudes[row]
        oscillators.phases[row] = synthesise_harmonics(
            oscillators.phases[row], oscillators.hertz[row], hertz[a], old, amplitudes, samples[a]
        )
        oscillators.hertz[row] = hertz[a]
        copy(amplitudes, old, HARMONICS)
