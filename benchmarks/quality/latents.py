"""How far made audio lies from real audio as the codec's encoder sees both: a Frechet distance with an interval.

Vectors are the mean and the deviation of each third of a second of the encoder's output, scaled by the spread of the
real ones and projected on their first principal components. It asks whether audio is distributed like the real one, not
whether it is the same: no frame is compared with its original.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.quality import acoustics
from model.checkpoint import Bundle

POOL_FRAMES = 25  # a third of a second
COMPONENTS = 32
RESAMPLES = 200
Array = npt.NDArray[np.floating]
Clips = Array | Sequence[Array]  # of vectors: (clips, pieces, D), or a (pieces, D) each


@torch.inference_mode()
def pooled(bundle: Bundle, samples: Tensor) -> Array:
    """Mean and deviation over time of the encoder's output: (B, N) -> (B, pieces, 256)."""
    found = []
    for some in samples.split(2):
        latents = bundle.codec.encoder(some[:, None])  # (b, 128, T)
        pieces = latents.shape[-1] // POOL_FRAMES
        blocks = latents[..., : pieces * POOL_FRAMES].unflatten(-1, (pieces, POOL_FRAMES))
        found.append(torch.cat([blocks.mean(-1), blocks.std(-1)], 1).transpose(1, 2))
    joined: Array = torch.cat(found).double().numpy()
    return joined


@dataclass(frozen=True)
class Space:
    """Where distances are measured: scale and principal directions of the true continuations."""

    mean: Array
    scale: Array
    directions: Array  # (256, COMPONENTS)

    @classmethod
    def of(cls, vectors: Array, components: int = COMPONENTS) -> "Space":
        """Fitted to vectors (N, D)."""
        mean, scale = vectors.mean(0), vectors.std(0) + 1e-9
        directions = np.linalg.svd((vectors - mean) / scale, full_matrices=False)[2][:components].T
        return cls(mean, scale, directions)

    def project(self, vectors: Array) -> Array:
        """(..., D) -> (..., components)"""
        projected: Array = (vectors - self.mean) / self.scale @ self.directions
        return projected


def distance(real: Clips, made: Clips, seed: int = 0) -> dict[str, float]:
    """Frechet distance of clips of vectors, with an interval: both sets' clips are drawn together."""

    def of(rows: npt.NDArray[np.integer]) -> float:
        one, other = (np.concatenate([clips[row] for row in rows]) for clips in (real, made))
        return acoustics.frechet(one, other)

    picks = np.random.default_rng(seed).integers(0, len(real), (RESAMPLES, len(real)))
    low, high = np.percentile([of(rows) for rows in picks], [2.5, 97.5])
    return {"mean": of(np.arange(len(real))), "low": float(low), "high": float(high)}
