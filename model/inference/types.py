"""What passes between prefill, backends and their callers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.codec.streaming import DecoderState
from model.lm.hybrid_lm import LMCache


@dataclass(frozen=True)
class Frames:
    """One frame of each active row, in the order of ``active``."""

    codes: npt.NDArray[np.int64]  # (A, K)
    logprobs: npt.NDArray[np.float32]  # (A,): of the coarse token, under the model's own distribution
    fine_logprobs: npt.NDArray[np.float32]  # (A, K - 1)
    samples: npt.NDArray[np.float32]  # (A, 320)
    mel: npt.NDArray[np.float32]  # (A, 64): the mel frame that the next position is given


LoopMel = Literal["real", "decoded", "masked"]


@dataclass(frozen=True)
class PromptState:
    """A prompt that has been read once, for any number of continuations.

    ``tokens`` (T,) int64 and ``logprobs`` (T,) are the prompt's own; the rest is the state after it, of one row.
    """

    tokens: Tensor
    logprobs: Tensor
    cache: LMCache
    codes: Tensor  # (1, k): those of the last frame, whose coarse token the model has not seen yet
    mel: Tensor  # (1, 1, 64): the mel frame that goes with it
    codec: DecoderState
    tail: Tensor  # (1, 704): the last samples of the decoded prompt
    real_tail: Tensor  # (1, 704): the last samples of the prompt itself
    codebooks: int
    masked: bool
    ready: "torch.cuda.Event | None" = None  # on a GPU: behind all of the above, for streams other than the reader's

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the prompt, nats a token."""
        return -float(self.logprobs.double().mean())

    @property
    def nbytes(self) -> int:
        """Memory that its tensors take."""
        rings = [ring for ring in (self.cache.mel, self.cache.stack) if ring is not None]
        cached = [part for ring in rings for part in (ring.keys, ring.values)]
        rest = [self.tokens, self.logprobs, self.codes, self.mel, self.tail, self.real_tail, *self.codec.tensors]
        return sum(tensor.nbytes for tensor in (*cached, *rest))


@dataclass(frozen=True)
class RowSnapshot:
    """A backend's row between two steps, for any row of a backend of the same kind, bundle and codebooks to go on from.

    With the same options it makes the very frames that the row itself makes next: its random numbers go on, too.
    """

    held: Any  # copies, as the backend lays them out
    tail: npt.NDArray[np.float32]  # (704,): the last samples made
    frames: int  # made so far, by this row and by those that it went on from
    codebooks: int
    nbytes: int


@dataclass(frozen=True)
class GeneratedFrame:
    """One frame of n continuations; on the model's device, nothing has been waited for."""

    index: int
    codes: Tensor  # (n, k) int64
    logprobs: Tensor  # (n,) of the coarse token, under the model's own distribution
    fine_logprobs: Tensor  # (n, k - 1)
    samples: Tensor  # (n, 320)
    mel: Tensor  # (n, 64): the mel frame that the next position is given
