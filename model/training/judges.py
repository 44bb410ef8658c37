"""Independent judges of recoded and continued speech: DNSMOS, and how many words a recogniser hears otherwise.

No loss of ours is a relative of either. Both bring their weights in their packages (extra `judges`) and need no
network; without the extra there are no such figures, and a report says so. DNSMOS is a network trained on listeners'
marks (P.835: arXiv 2110.01763; P.808: arXiv 2010.15258). pocketsphinx is a weak recogniser, the same for every row:
what it hears in the real clip stands for the words that were said, so a clip's rate against itself is 0. Of a
continuation nobody knows the words: DNSMOS hears it, and `model.training.voices` tells whose voice it is in.
"""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from model.constants import SAMPLE_RATE_HZ
from model.training import voices

JUDGE_RATE_HZ = 16_000  # of both
MIN_SECONDS = 1.0  # shorter clips hold too few words and too little for a mark


def available() -> bool:
    """Whether the extra `judges` is installed."""
    return all(find_spec(name) is not None for name in ("speechmos", "pocketsphinx", "librosa", "onnxruntime"))


def _heard(samples: Tensor) -> npt.NDArray[np.float32]:
    """Samples (N,) at 24 kHz at the judges' rate, within full scale."""
    low = soxr.resample(samples.double().cpu().numpy(), SAMPLE_RATE_HZ, JUDGE_RATE_HZ)
    return np.asarray(np.clip(low, -1.0, 1.0), dtype=np.float32)


def mean_opinion(samples: Tensor) -> dict[str, float]:
    """DNSMOS of a clip (N,) at 24 kHz, marks from 1 to 5: ``mos`` over all, ``mos_signal``, ``mos_p808``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, on import and on short windows
        from speechmos import dnsmos

        marks = dnsmos.run(_heard(samples), JUDGE_RATE_HZ)
    return {
        "mos": float(marks["ovrl_mos"]),
        "mos_signal": float(marks["sig_mos"]),
        "mos_p808": float(marks["p808_mos"]),
    }


def heard_figures(made: npt.NDArray[np.float32], prompt: npt.NDArray[np.float32]) -> dict[str, float]:
    """Of a continuation and its prompt, (N,) samples at 24 kHz each: DNSMOS, and ``similarity`` of the two voices.

    For speech. Whatever the judges that are not installed would tell is left out, and all of a clip under a second.
    """
    if len(made) < MIN_SECONDS * SAMPLE_RATE_HZ:
        return {}
    figures = mean_opinion(torch.from_numpy(made)) if available() else {}
    return figures | ({"similarity": voices.similarity(made, prompt)} if voices.available() else {})


def words(samples: Tensor) -> list[str]:
    """What the recogniser hears in a clip (N,) at 24 kHz; no word where it hears none."""
    from pocketsphinx import Decoder

    # a new one for each clip: what one has heard before changes what it hears next
    recogniser = Decoder(samprate=JUDGE_RATE_HZ, loglevel="FATAL", cmn="batch")
    recogniser.start_utt()
    recogniser.process_raw((_heard(samples) * 32767).astype("<i2").tobytes(), no_search=False, full_utt=True)
    recogniser.end_utt()
    best = recogniser.hyp()
    return best.hypstr.split() if best is not None else []


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """Least number of insertions, deletions and substitutions that make ``heard`` of ``said``."""
    costs = list(range(len(heard) + 1))
    for row, wanted in enumerate(said, 1):
        diagonal, costs[0] = costs[0], row
        for column, word in enumerate(heard, 1):
            best = min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != wanted))
            diagonal, costs[column] = costs[column], best
    return costs[-1]
