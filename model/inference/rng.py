"""Random numbers that are a function of (seed, choice, frame, codebook), and of nothing else.

A counter-based generator (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives
each draw its own number, so a request draws the same tokens alone, in any batch and in any slot.
"""

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Philox4x32-10: counters (N, 4) and a key of two 32-bit words -> (N, 4) words of 32 bits, held in uint64."""
    x0, x1, x2, x3 = (counter[:, index].astype(np.uint64) for index in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (product1 >> _SHIFT) ^ x1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ x3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([x0, x1, x2, x3], axis=1)


def uniforms(seed: int, choice: int, first_frame: int, frames: int, codebooks: int) -> npt.NDArray[np.float64]:
    """The numbers that draw ``frames`` frames from ``first_frame`` on: (frames, codebooks) float64 in [0, 1).

    Key: the two halves of the seed. Counter: (frame, codebook, choice, 0). 53 bits each.
    """
    counter = np.zeros((frames, codebooks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(first_frame, first_frame + frames, dtype=np.uint64)[:, None]
    counter[..., 1] = np.arange(codebooks, dtype=np.uint64)
    counter[..., 2] = np.uint64(choice)
    words = philox(counter.reshape(-1, 4), (seed & 0xFFFFFFFF, seed >> 32))
    bits = (words[:, 0] << np.uint64(21)) | (words[:, 1] >> np.uint64(11))  # 32 + 21 bits
    return (bits.astype(np.float64) * 2.0**-53).reshape(frames, codebooks)


BLOCK = 128  # frames of random numbers made at a time


class Numbers:
    """The random numbers of one row, made a block at a time."""

    def __init__(self, seed: int, choice: int, codebooks: int, frame: int = 0) -> None:
        self.seed, self.choice, self.codebooks = seed, choice, codebooks
        self.frame = frame  # the next one
        self._first, self._block = 0, np.empty((0, codebooks))

    def next(self) -> npt.NDArray[np.float64]:
        """Those of the next frame, (K,)."""
        if self.frame >= self._first + len(self._block):
            self._first = self.frame
            self._block = uniforms(self.seed, self.choice, self.frame, BLOCK, self.codebooks)
        self.frame += 1
        row: npt.NDArray[np.float64] = self._block[self.frame - 1 - self._first]
        return row
