"""Speaker embeddings by Resemblyzer (Apache-2.0), whose wheel ships its weights. Extra `judges`; for evaluation only.

The encoder was trained on LibriSpeech's train-other-500 and on VoxCeleb (GE2E, arXiv 1710.10467): the test speakers
are new to it.
"""

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from model.constants import SAMPLE_RATE_HZ

RATE_HZ = 16_000
LEVEL = 10 ** (-30 / 20)  # what the package normalises to: -30 dB


def available() -> bool:
    """Whether the package is installed."""
    return find_spec("resemblyzer") is not None


@cache
def encoder() -> Any:
    """The package's voice encoder, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports pkg_resources and an old name of scipy's
        from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def embedding(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The voice of samples (N,) at 24 kHz, (256,) of length 1. Pauses stay in: made audio may hold little else."""
    wave = soxr.resample(np.asarray(samples, dtype=np.float32), SAMPLE_RATE_HZ, RATE_HZ)
    wave = wave * (LEVEL / (np.sqrt(np.mean(wave**2)) + 1e-6))
    found: npt.NDArray[np.float32] = encoder().embed_utterance(wave)
    return found


def similarity(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Cosine of two voices, samples (N,) at 24 kHz each: at most 1, for the same."""
    return float(embedding(one) @ embedding(other))
