"""What `model.codec.decoders.source_filter` does with a frame: pulses, noise, sines, and filters."""

import math
from typing import Annotated, Any, NamedTuple

import numpy as np

from model.codec.decoders.harmonic import PITCH_BINS
from model.codec.decoders.source_filter import (
    BANDS,
    BINS,
    FFT,
    GAIN_MAX,
    GAIN_MIN,
    HEADS,
    NOTE_MIN,
    PITCH_STEPS,
    PULSE_MAX_HZ,
    RAMP,
    RESPONSE,
    SOURCES,
    SUBFRAME,
    SUBFRAMES,
)
from model.codec.encoders.spectral import NOTES
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.numba_backend.arrays import Doubles, Floats, Integers, Matrices, Shape
from model.inference.numba_backend.gemm import TILE, add_product
from model.inference.numba_backend.harmonics import pitch as estimated_pitch
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import ZERO, copy, exp, f32, sine_cosine


class SourceWeights(NamedTuple):
    """What makes a frame of its sources: the decoder's heads, and tables."""

    heads: Annotated[Matrices, Shape("tiles", "dim", TILE)]  # of the bins of pitch, then of the controls
    heads_bias: Annotated[Floats, Shape("outputs")]
    log_hertz: Annotated[Doubles, Shape(PITCH_BINS)]
    responses: Annotated[Floats, Shape("bin tiles", BANDS, TILE)]  # bands' gains to log gains of bins, then phases
    waves: Annotated[Floats, Shape("wave tiles", 2 * NOTES, TILE)]  # a subframe of each sine's cosine and sine part
    note_turns: Annotated[Doubles, Shape(NOTES)]  # cycles a sample
    reversed: Annotated[Integers, Shape(FFT)]
    cos: Annotated[Floats, Shape(FFT // 2)]
    sin: Annotated[Floats, Shape(FFT // 2)]


class Sources(NamedTuple):
    """Of each row: `model.codec.decoders.source_filter.Sources`, rows first."""

    frames: Annotated[Integers, Shape("rows")]
    phases: Annotated[Doubles, Shape("rows")]
    hertz: Annotated[Doubles, Shape("rows")]
    levels: Annotated[Floats, Shape("rows", SOURCES)]
    amplitudes: Annotated[Floats, Shape("rows", NOTES)]
    ringing: Annotated[Floats, Shape("rows", RESPONSE)]


CONTROLS = HEADS // SUBFRAMES  # of a subframe
FILTERS = SUBFRAMES * SOURCES  # of a frame
RESPONSE_WIDTH = -(-2 * BINS // TILE) * TILE
WAVE_WIDTH = -(-SUBFRAME // TILE) * TILE
HEAD_WIDTH = -(-(PITCH_BINS + HEADS) // TILE) * TILE
_THREE, _FOUR, _SIX = f32(3.0), f32(4.0), f32(6.0)
_LOW, _HIGH, _QUIET = f32(GAIN_MIN), f32(GAIN_MAX), f32(NOTE_MIN)
_N = np.arange(1, HOP_SAMPLES + 1, dtype=np.float64)
_BEHIND = np.minimum(_N, RAMP) - np.minimum(_N, RAMP) ** 2 / (2 * RAMP)  # of a step in pitch, in samples
_ARRIVED = np.minimum(_N / RAMP, 1.0)
_RISE = (np.arange(1, SUBFRAME + 1, dtype=np.float32) / f32(SUBFRAME)).astype(np.float32)
_SPREAD = f32(math.sqrt(12.0))
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@compiled
def pitch(logits: Any, log_hertz: Any) -> Any:
    """`SourceFilterDecoder.pitch` of one frame: logits (PITCH_BINS or more,) -> Hz, float64"""
    return math.floor(estimated_pitch(logits, log_hertz) * PITCH_STEPS + 0.5) / PITCH_STEPS


@compiled
def pulses(start: Any, before: Any, hertz: Any, out: Any) -> Any:
    """`SourceFilterDecoder.pulses` of one frame, into out (320,); returns the phase at its end, float64 below 1."""
    step = hertz - before
    for n in range(HOP_SAMPLES):
        turned = start + (hertz * _N[n] - step * _BEHIND[n]) / SAMPLE_RATE_HZ
        turns = turned - math.floor(turned)
        now = before + step * _ARRIVED[n]
        count = PULSE_MAX_HZ / now
        whole = math.floor(count)
        upper, last = (whole + 0.5) * turns, (whole + 1.0) * turns
        half, _ = sine_cosine(f32(0.5 * turns))
        top, _ = sine_cosine(f32(upper - math.floor(upper)))
        _, fading = sine_cosine(f32(last - math.floor(last)))
        summed = f32(whole) if half < f32(1e-4) else top / (f32(2.0) * half) - f32(0.5)
        summed += f32(count - whole) * fading
        out[n] = summed * f32(math.sqrt(2.0 * now / SAMPLE_RATE_HZ))
    end = start + (hertz * HOP_SAMPLES - step * (RAMP / 2)) / SAMPLE_RATE_HZ
    return end - math.floor(end)


@compiled
def noise(first: Any, out: Any) -> None:
    """`model.codec.decoders.source_filter.noise` from the sample's number on, into out (320,)."""
    for n in range(HOP_SAMPLES):
        x = (np.uint64(first) + np.uint64(n) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        x = x ^ (x >> np.uint64(31))
        out[n] = (f32(np.int64(x >> np.uint64(40))) * f32(2.0**-24) - f32(0.5)) * _SPREAD


@compiled
def transform(real: Any, imaginary: Any, weights: Any) -> None:
    """A complex Fourier transform of 1024 by radix 2, in place; the input lies in bit-reversed order."""
    # as in `log_mel.magnitudes`, each with a length that the compiler knows
    size = 2
    while size <= FFT:
        middle, stride = size // 2, FFT // size
        for start in range(0, FFT, size):
            for k in range(middle):
                c, s = weights.cos[k * stride], weights.sin[k * stride]
                i, j = start + k, start + k + middle
                a, b = real[j] * c - imaginary[j] * s, real[j] * s + imaginary[j] * c
                real[j], imaginary[j] = real[i] - a, imaginary[i] - b
                real[i] += a
                imaginary[i] += b
        size *= 2


@compiled
def filtered(
    pulse: Any, white: Any, came_from: Any, levels: Any, responses: Any, weights: Any, ringing: Any, out: Any
) -> None:
    """`SourceFilterDecoder.filtered` of one frame: pulse, white (320,) -> out (320 or more,); ringing (864,) moves on.

    came_from (2,): levels at the start; levels (SUBFRAMES, 2); responses (FILTERS, 2 BINS or more).
    """
    real, imaginary = np.empty(FFT, np.float32), np.empty(FFT, np.float32)
    # two real transforms in one: pulses are the real part and noise the imaginary one; and back, two subframes
    sum_real, sum_imaginary = np.zeros(FFT, np.float32), np.zeros(FFT, np.float32)
    gain, c, s = np.empty(BINS, np.float32), np.empty(BINS, np.float32), np.empty(BINS, np.float32)
    a, b = np.empty(BINS, np.float32), np.empty(BINS, np.float32)
    half = f32(0.5)
    for sub in range(SUBFRAMES):
        for i in range(FFT):
            real[i], imaginary[i] = ZERO, ZERO
        p0, n0 = (came_from[0], came_from[1]) if sub == 0 else (levels[sub - 1, 0], levels[sub - 1, 1])
        p1, n1 = levels[sub, 0] - p0, levels[sub, 1] - n0
        for i in range(SUBFRAME):
            at = weights.reversed[i]
            real[at] = pulse[sub * SUBFRAME + i] * (p0 + _RISE[i] * p1)
            imaginary[at] = white[sub * SUBFRAME + i] * (n0 + _RISE[i] * n1)
        transform(real, imaginary, weights)
        for k in range(BINS):
            a[k], b[k] = ZERO, ZERO
        for source in range(SOURCES):
            logs = responses[sub * SOURCES + source]
            for k in range(BINS):
                turns = logs[BINS + k]
                turns -= f32(math.floor(turns))
                gain[k] = exp(logs[k]) * half
                s[k], c[k] = sine_cosine(turns)
            for k in range(BINS):
                j = (FFT - k) % FFT
                if source == 0:
                    x, y = real[k] + real[j], imaginary[k] - imaginary[j]
                else:
                    x, y = imaginary[k] + imaginary[j], real[j] - real[k]
                a[k] += gain[k] * (x * c[k] - y * s[k])
                b[k] += gain[k] * (x * s[k] + y * c[k])
        # the sum of the first subframe's spectrum and i times that of the second, conjugated: a forward transform of it
        # is the inverse, conjugated
        for k in range(FFT):
            own = k if k < BINS else FFT - k
            y = b[own] if k < BINS else -b[own]
            if k == 0 or k == FFT // 2:
                y = ZERO
            at = weights.reversed[k]
            if sub == 0:
                sum_real[at] += a[own]
                sum_imaginary[at] -= y
            else:
                sum_real[at] -= y
                sum_imaginary[at] -= a[own]
    transform(sum_real, sum_imaginary, weights)
    scale = f32(1.0 / FFT)
    whole = np.zeros(HOP_SAMPLES + RESPONSE, np.float32)
    copy(ringing, whole, RESPONSE)
    for i in range(FFT):
        whole[i] += sum_real[i] * scale
    for i in range(FFT):
        whole[SUBFRAME + i] -= sum_imaginary[i] * scale
    copy(whole, out, HOP_SAMPLES)
    copy(whole[HOP_SAMPLES:], ringing, RESPONSE)


@compiled
def render_sources(features: Any, weights: Any, sources: Any, rows: Any, samples: Any) -> None:
    """`SourceFilterDecoder.render` of one frame: features (A, dim) -> samples (A, 320 or more); the rows move on."""
    count = rows.shape[0]
    heads = np.empty((count, HEAD_WIDTH), np.float32)
    for a in range(count):
        copy(weights.heads_bias, heads[a], HEAD_WIDTH)
    add_product(features, weights.heads, heads, count)
    shapes = np.empty((count * FILTERS, BANDS), np.float32)
    levels = np.empty((count, SUBFRAMES, SOURCES), np.float32)
    parts = np.empty((count * FILTERS, 2 * NOTES), np.float32)  # for each subframe, the sines as they were and will be
    for a in range(count):
        row = rows[a]
        first = sources.frames[row] * HOP_SAMPLES
        old = sources.amplitudes[row]
        for sub in range(SUBFRAMES):
            controls = heads[a, PITCH_BINS + sub * CONTROLS : PITCH_BINS + (sub + 1) * CONTROLS]
            for source in range(SOURCES):
                shape = shapes[a * FILTERS + sub * SOURCES + source]
                mean = ZERO
                for band in range(BANDS):
                    raw = _THREE * controls[source * BANDS + band] - _FOUR
                    shape[band] = min(max(raw, _LOW), _HIGH)
                    mean += shape[band]
                mean /= f32(BANDS)
                for band in range(BANDS):
                    shape[band] -= mean
                levels[a, sub, source] = exp(mean)
            before, after = parts[a * FILTERS + 2 * sub], parts[a * FILTERS + 2 * sub + 1]
            for note in range(NOTES):
                raw = min(max(_THREE * controls[SOURCES * BANDS + note] - _SIX, _QUIET), ZERO)
                new = exp(raw)
                begins = (first + sub * SUBFRAME) * weights.note_turns[note] + 0.37 * note
                sine, cosine = sine_cosine(f32(begins - math.floor(begins)))
                before[note], before[NOTES + note] = old[note] * sine, old[note] * cosine
                after[note], after[NOTES + note] = new * sine, new * cosine
                old[note] = new
    responses = np.zeros((count * FILTERS, RESPONSE_WIDTH), np.float32)
    add_product(shapes, weights.responses, responses, count * FILTERS)
    sines = np.zeros((count * FILTERS, WAVE_WIDTH), np.float32)
    add_product(parts, weights.waves, sines, count * FILTERS)
    pulse, white = np.empty(HOP_SAMPLES, np.float32), np.empty(HOP_SAMPLES, np.float32)
    for a in range(count):
        row = rows[a]
        out = samples[a]
        hertz = pitch(heads[a], weights.log_hertz)
        if sources.frames[row] == 0:  # a clip begins with its first pitch
            sources.hertz[row] = hertz
        sources.phases[row] = pulses(sources.phases[row], sources.hertz[row], hertz, pulse)
        sources.hertz[row] = hertz
        noise(sources.frames[row] * HOP_SAMPLES, white)
        filtered(
            pulse, white, sources.levels[row], levels[a], responses[a * FILTERS : (a + 1) * FILTERS], weights,
            sources.ringing[row], out,
        )  # fmt: skip
        for sub in range(SUBFRAMES):
            was, comes = sines[a * FILTERS + 2 * sub], sines[a * FILTERS + 2 * sub + 1]
            for i in range(SUBFRAME):
                out[sub * SUBFRAME + i] += was[i] + _RISE[i] * (comes[i] - was[i])
        copy(levels[a, SUBFRAMES - 1], sources.levels[row], SOURCES)
        sources.frames[row] += 1
