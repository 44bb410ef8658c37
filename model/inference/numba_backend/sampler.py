"""Drawing a token from a row of logits, with the meaning of `model.inference.sampling`."""

import math
from typing import Any

import numpy as np

from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.math import EXP_MIN, ZERO, copy, exp, f32, total

MINUS_INFINITY = f32(-np.inf)
LANES = 16


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
def draw(
    logits: Any,
    vocabulary: int,
    temperature: float,
    top_k: int,
    top_p: float,
    uniform: float,
    probabilities: Any,
    work: Any,
) -> tuple[int, float]:
    """A token and its log-probability before temperature, top-k and top-p.

    logits: (V or more,); probabilities, work: buffers (V,). Temperature 0 is greedy; top_k 0 and top_p 1 are off.
    A row with a NaN gives token 0 and a NaN.
    """
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
