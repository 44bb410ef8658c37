"""Pauses in what the language model learns: shortened, put in, and left out of its loss.

A continuation has no end, and a model that has heard silence follow silence stays silent once it is. What was measured
stands in docs/log.md.
"""

import numpy as np
import numpy.typing as npt

from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ
from model.lm.mel import LOG_FLOOR
from model.training.configs import TokenSettings

# of each pause that is put in: how far behind the one before, how long, both in samples, and the deviation of its hiss
Pauses = tuple[tuple[int, int, float], ...]
Spans = tuple[tuple[int, int], ...]  # first and last (excluded) frame of each


def stretches(values: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last (excluded) index of each stretch of True in (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], values, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def shorten_pauses(
    samples: npt.NDArray[np.float32], longest: float, at_ends: float, quiet_share: float = TokenSettings.quiet_share
) -> npt.NDArray[np.float32]:
    """Samples (N,) with no silence longer than ``longest`` seconds, nor than ``at_ends`` at the beginning and the end.

    ``quiet_share``: of the loud frames' level, below which a frame is silent. What is cut is the middle of a pause.
    """
    frames = len(samples) // HOP_SAMPLES
    levels = np.sqrt(np.square(samples[: frames * HOP_SAMPLES].reshape(frames, HOP_SAMPLES)).mean(1))
    quiet = levels < max(quiet_share * float(np.quantile(levels, 0.9)), 1e-5)
    remaining = np.ones(frames, dtype=bool)
    for first, last in stretches(quiet):
        outer = round((at_ends if first == 0 or last == frames else longest) * FRAME_RATE_HZ)
        before = 0 if first == 0 else outer if last == frames else outer // 2
        remaining[first + before : max(last - (outer - before), first + before)] = False
    if not remaining.any():
        return samples
    return samples[: frames * HOP_SAMPLES].reshape(frames, HOP_SAMPLES)[remaining].reshape(-1)


def insert_pauses(
    samples: npt.NDArray[np.float32], pauses: Pauses, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Spans]:
    """Samples (N,) with pauses put in, and the frames from where each begins to where sound goes on.

    A recording that a person uploads often ends in digital silence, wherever the talk stood; what a corpus knows of
    such silence is that it lasts. Here sound follows every one, so a model learns that it ends. Where it begins can
    not be foreseen, nor should it be foretold: the loss of coarse tokens leaves these frames out.
    """
    parts, spans, read, made = [], [], 0, 0
    for gap, length, hiss in pauses:
        if read + gap + SAMPLE_RATE_HZ // 4 > len(samples):  # sound follows
            break
        noise = hiss * rng.standard_normal(length, dtype=np.float32) if hiss else np.zeros(length, dtype=np.float32)
        parts += [samples[read : read + gap], noise.astype(np.float32)]
        read, made = read + gap, made + gap + length
        spans.append(((made - length) // HOP_SAMPLES, made // HOP_SAMPLES))
    return np.concatenate([*parts, samples[read:]]), tuple(spans)


def deep_silence(mel: npt.NDArray[np.float32], seconds: float, quiet_share: float) -> npt.NDArray[np.bool_]:
    """Which frames of a document's log-mel (T, 64) lie more than ``seconds`` into a silence: (T,)

    ``quiet_share``: of the loud frames' level, below which a frame is silent. Told that silence follows silence, a
    model at a temperature below 1 makes it certain. With these frames left out of the loss, what it knows of a silence
    that has lasted is the sound that ends it.
    """
    levels = np.exp(mel).mean(1) - LOG_FLOOR
    deep = np.zeros(len(mel), dtype=bool)
    for first, last in stretches(levels < quiet_share * np.quantile(levels, 0.9)):
        deep[first + round(seconds * FRAME_RATE_HZ) : last] = True
    return deep
