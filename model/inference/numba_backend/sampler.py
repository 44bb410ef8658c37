"""Drawing a token from a row of logits, with the meaning of `model.inference.sampling`."""

import math
from typing import Annotated, Any, NamedTuple

import numpy as np

from model.constants import VOCABULARY
from model.inference.numba_backend.arrays import Doubles, Integers, Shape
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import EXP_MIN, ZERO, copy, exp, f32, total

MINUS_INFINITY = f32(-np.inf)
LANES = 16


class Options(NamedTuple):
    """How each row draws its tokens: fields of `model.inference.sampling.SamplingOptions`, by their names."""

    temperature: Annotated[Doubles, Shape("rows")]
    top_k: Annotated[Integers, Shape("rows")]
    top_p: Annotated[Doubles, Shape("rows")]
    keep_level: Annotated[Integers, Shape("rows")]  # 0 or 1


class LevelTables(NamedTuple):
    """Which tokens are about equally loud; one level of all where a bundle knows of none."""

    tokens: Annotated[Integers, Shape(VOCABULARY)]  # level by level
    starts: Annotated[Integers, Shape("levels and 1")]  # where each begins, and the end of the last


@compiled
def largest(logits: Any, count: int) -> Any:
    """The largest of the first ``count`` logits; NaN when one of them is."""
    peaks = np.full(LANES, MINUS_INFINITY)
    for start in range(0, count, LANES):
        for lane in range(LANES):
            value = logits[start + lane]
            peaks[lane] = peaks[lane] if peaks[lane] > value else value
    peak = MINUS_INFINITY
    for lane in range(LANES):
        peak = peak if peak > peaks[lane] else peaks[lane]
    return peak


@compiled
def _kth(probabilities: Any, k: int, work: Any) -> Any:
    """The k-th largest of probabilities (V,), by quickselect in ``work`` (V,)."""
    count = probabilities.shape[0]
    copy(probabilities, work, count)
    low, high, place = 0, count - 1, k - 1
    while low < high:
        pivot = work[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while work[i] > pivot:
                i += 1
            while work[j] < pivot:
                j -= 1
            if i <= j:
                work[i], work[j] = work[j], work[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return work[place]


@compiled
def _keep_top_p(probabilities: Any, top_p: float, work: Any) -> None:
    """Sets to 0 what is not in the smallest set of most likely tokens that reaches top_p of the whole.

    The threshold is found by a quickselect that adds up what lies above the pivot, so that nothing is sorted. Of the
    tokens as likely as the threshold, the first ones are kept until top_p is reached.
    """
    count = probabilities.shape[0]
    whole = 0.0
    for i in range(count):
        whole += probabilities[i]
    wanted = top_p * whole
    copy(probabilities, work, count)
    candidates, above = count, 0.0  # candidates are work[:candidates]; `above` is what all larger ones hold
    while True:
        pivot = work[candidates // 2]
        larger, equal = 0.0, 0.0
        for i in range(candidates):
            if work[i] > pivot:
                larger += work[i]
            elif work[i] == pivot:
                equal += work[i]
        if above + larger >= wanted and larger > 0.0:
            remaining = 0
            for i in range(candidates):
                if work[i] > pivot:
                    work[remaining] = work[i]
                    remaining += 1
            candidates = remaining
        elif above + larger + equal >= wanted:
            threshold, before = pivot, above + larger
            break
        else:
            above += larger + equal
            remaining = 0
            for i in range(candidates):
                if work[i] < pivot:
                    work[remaining] = work[i]
                    remaining += 1
            candidates = remaining
            if candidates == 0:  # rounding: all of them are needed
                return
    for i in range(count):
        if probabilities[i] < threshold:
            probabilities[i] = ZERO
        elif probabilities[i] == threshold:
            if before >= wanted:
                probabilities[i] = ZERO
            before += threshold


@compiled
def _by_level(
    logits: Any, levels: Any, temperature: float, top_k: int, top_p: float, probabilities: Any, within: Any, work: Any
) -> None:
    """Temperature and top-p within each level, whose sum of ``probabilities`` stays what it was, or is 0 after top-k.

    probabilities: (V,), the logits' exponents; within, work: buffers (V,).
    """
    inverse = f32(1.0 / max(temperature, 1e-30))
    least = ZERO
    if 0 < top_k < probabilities.shape[0]:
        least = _kth(probabilities, top_k, work)
    for level in range(levels.starts.shape[0] - 1):
        tokens = levels.tokens[levels.starts[level] : levels.starts[level + 1]]
        count = tokens.shape[0]
        peak, whole, left = MINUS_INFINITY, 0.0, 0
        for i in range(count):
            token = tokens[i]
            whole += probabilities[token]
            if probabilities[token] >= least:
                left += 1
                peak = peak if peak > logits[token] else logits[token]
        for i in range(count):
            token = tokens[i]
            off = (logits[token] - peak) * inverse
            within[i] = exp(off) if left > 0 and probabilities[token] >= least and off > EXP_MIN else ZERO
        if top_p < 1.0 and left > 0:
            _keep_top_p(within[:count], top_p, work)
        held = 0.0
        for i in range(count):
            held += within[i]
        factor = f32(whole / held) if left > 0 else ZERO
        for i in range(count):
            probabilities[tokens[i]] = within[i] * factor


@compiled
def draw(
    logits: Any, vocabulary: int, options: Any, row: int, coarse: bool, levels: Any, uniform: float,
    probabilities: Any, within: Any, work: Any,
) -> tuple[int, float]:  # fmt: skip
    """A token and its log-probability before all that ``options`` ask of it for ``row``.

    logits: (V or more,); probabilities, within, work: buffers (V,). Temperature 0 is greedy; top_k 0, top_p 1 and
    keep_level 0 are off. Only coarse tokens have levels. A row with a NaN gives token 0 and a NaN.
    """
    temperature, top_k, top_p = options.temperature[row], options.top_k[row], options.top_p[row]
    keep_level = coarse and options.keep_level[row] != 0
    peak = largest(logits, vocabulary)
    for i in range(vocabulary):
        probabilities[i] = exp(logits[i] - peak)
    normal = math.log(total(probabilities, vocabulary))
    if not normal >= 0.0:
        return 0, math.nan
    token = 0
    if temperature == 0.0:
        while logits[token] < peak:
            token += 1
        return token, logits[token] - peak - normal
    limited = temperature != 1.0 or 0 < top_k < vocabulary or top_p < 1.0
    if limited and keep_level and levels.starts.shape[0] > 2:
        _by_level(logits, levels, temperature, top_k, top_p, probabilities[:vocabulary], within, work)
    else:
        if temperature != 1.0:
            inverse = f32(1.0 / max(temperature, 1e-30))
            for i in range(vocabulary):
                off = (logits[i] - peak) * inverse
                probabilities[i] = exp(off) if off > EXP_MIN else ZERO  # `exp` never ends at 0
        if 0 < top_k < vocabulary:
            kth = _kth(probabilities[:vocabulary], top_k, work)
            for i in range(vocabulary):
                if probabilities[i] < kth:
                    probabilities[i] = ZERO
        if top_p < 1.0:
            _keep_top_p(probabilities[:vocabulary], top_p, work)
    whole = 0.0
    for i in range(vocabulary):
        whole += probabilities[i]
    target, cdf = uniform * whole, 0.0
    for i in range(vocabulary):
        cdf += probabilities[i]
        if cdf > target:
            token = i
            break
    return token, logits[token] - peak - normal
