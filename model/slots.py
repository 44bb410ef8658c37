"""Slots: many continuations in one closed loop; rows join and leave between steps.

Shapes never change: every step computes every row, taken or free. So a row's arithmetic is the same whatever its
neighbours hold and however many are active: its result is the same to the bit. (CPU kernels work row by row only for
row counts that are a multiple of 4 [`padded`]; a change of shape is what changes bits.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.bundle import Bundle
from model.codec.streaming import DecoderState, StreamingDecoder
from model.constants import MEL_BANDS, MEL_LEFT_SAMPLES
from model.generate import PromptState
from model.sampling import RowOptions, SamplingOptions, draw, uniforms

BLOCK = 128  # frames of random numbers made at a time
ROWS_MULTIPLE = 4  # of rows: what CPU matrix kernels need to treat every row alike (DESIGN.md, section 7)
REACH_MULTIPLE = 64  # of slots that attention looks at on a CPU


@dataclass(frozen=True)
class Frames:
    """One frame of each active row, in the order of ``active``."""

    codes: npt.NDArray[np.int64]  # (A, K)
    logprobs: npt.NDArray[np.float32]  # (A,): of the coarse token, under the model's own distribution
    fine_logprobs: npt.NDArray[np.float32]  # (A, K - 1)
    samples: npt.NDArray[np.float32]  # (A, 320)
    mel: npt.NDArray[np.float32]  # (A, 64): the slice that the next position is given


class AnySlots(Protocol):
    """What the engine needs of slots."""

    rows: int
    codebooks: int

    def join(self, row: int, prompt: PromptState, options: SamplingOptions, choice: int = 0) -> None: ...
    def leave(self, row: int) -> None: ...
    def step(self, active: Sequence[int]) -> Frames: ...


class Numbers:
    """The random numbers of one row, made a block at a time."""

    def __init__(self, seed: int, choice: int, codebooks: int) -> None:
        self.seed, self.choice, self.codebooks = seed, choice, codebooks
        self.frame = 0
        self._first, self._block = 0, np.empty((0, codebooks))

    def next(self) -> npt.NDArray[np.float64]:
        """Those of the next frame, (K,)."""
        if self.frame >= self._first + len(self._block):
            self._first = self.frame
            self._block = uniforms(self.seed, self.choice, self.frame, BLOCK, self.codebooks)
        self.frame += 1
        row: npt.NDArray[np.float64] = self._block[self.frame - 1 - self._first]
        return row


def padded(rows: int, device: torch.device) -> int:
    """Rows to compute for so many slots."""
    return rows if device.type != "cpu" else -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


class Slots:
    """A fixed number of rows, on a CPU or a GPU, for any bundle.

    Args:
        bundle: the model; its weights are shared.
        rows: slots.
        codebooks: codes a frame; the codec's number by default. Prompts must have been read for the same number.
    """

    def __init__(self, bundle: Bundle, rows: int, codebooks: int | None = None) -> None:
        self.bundle, self.rows = bundle, rows
        self.codebooks = codebooks or bundle.codec.config.codebooks
        self.width = padded(rows, bundle.device)
        device = bundle.device
        with torch.inference_mode():
            self._decoder = StreamingDecoder(bundle.codec)
            self._lm = bundle.decoder.new_slots(self.width)
            self._codec: DecoderState = self._decoder.start(self.width)
            self._token = torch.zeros(self.width, 1, dtype=torch.int64, device=device)
            self._slice = torch.zeros(self.width, 1, MEL_BANDS, device=device)
            self._tail = torch.zeros(self.width, MEL_LEFT_SAMPLES, device=device)
        self._numbers: list[Numbers | None] = [None] * self.width
        self._options = [SamplingOptions()] * self.width
        self._drawing = RowOptions(self._options, device)
        self._lengths = [0] * self.width  # positions seen, on the host: the CPU attends to no more slots than needed

    def join(self, row: int, prompt: PromptState, options: SamplingOptions, choice: int = 0) -> None:
        """The row goes on from a prompt, which stays as it is. Raises ValueError when it was read in another way."""
        if prompt.codebooks != self.codebooks or prompt.masked:
            raise ValueError("the prompt was read for another mel source or number of codebooks")
        with torch.inference_mode():
            self._lm.join(row, prompt.cache)
            self._codec = self._codec.joined(row, prompt.codec, self.width)
            self._token[row] = prompt.token[0]
            self._slice[row] = prompt.slices[0, -1:]
            self._tail[row] = prompt.tail[0]
        self._lengths[row] = prompt.cache.length
        self._numbers[row] = Numbers(options.seed, choice, self.codebooks)
        self._options[row] = options
        self._drawing = RowOptions(self._options, self.bundle.device)

    def leave(self, row: int) -> None:
        """The row is free. What it held stays in place until another joins, and changes nothing."""
        self._numbers[row] = None
        self._options[row] = SamplingOptions()
        self._drawing = RowOptions(self._options, self.bundle.device)
        self._lengths[row] = 0

    def step(self, active: Sequence[int]) -> Frames:
        """Make one frame of each active row; the others' states stay as they are."""
        device = self.bundle.device
        uniform = np.zeros((self.width, self.codebooks))
        for row in active:
            numbers = self._numbers[row]
            assert numbers is not None, f"row {row} is free"
            uniform[row] = numbers.next()
        going = torch.zeros(self.width, dtype=torch.bool)
        going[list(active)] = True
        if device.type == "cpu":
            longest = 1 + max(self._lengths[row] for row in active)
            self._lm.reach(-(-longest // REACH_MULTIPLE) * REACH_MULTIPLE)
        with torch.inference_mode():
            made = self._step(torch.from_numpy(uniform).to(device), going.to(device))
            codes, logprobs, fine, samples, mel = (part.cpu().numpy()[list(active)] for part in made)
        for row in active:
            self._lengths[row] += 1
        return Frames(codes, logprobs, fine, samples, mel)

    def _step(self, uniform: Tensor, going: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """uniform (R, K) float64, going (R,) bool -> codes, log-probabilities, those of the fine codes, samples, mel"""
        model = self.bundle.decoder
        hidden = model(self._token, self._slice, cache=self._lm)[:, 0]  # (R, dim)
        self._lm.advance(going)
        code, logprob = self._drawn(model.logits(hidden), uniform[:, 0])
        codes, fine_logprobs = [code], []
        total = model.fine.start(hidden)
        for book in range(1, self.codebooks):
            total = model.fine.add(total, book - 1, codes[-1])
            fine, fine_logprob = self._drawn(model.fine.logits(total, book), uniform[:, book])
            codes.append(fine)
            fine_logprobs.append(fine_logprob)
        frame = torch.stack(codes, dim=1)  # (R, K)
        samples, after = self._decoder.step(frame[..., None], self._codec)
        self._codec = after.kept(self._codec, going)
        mel = self.bundle.mel(samples, self._tail)  # (R, 1, 64)
        tail = torch.cat([self._tail, samples], dim=-1)[:, -MEL_LEFT_SAMPLES:]
        self._tail = torch.where(going[:, None], tail, self._tail)
        self._token = torch.where(going[:, None], code[:, None], self._token)
        self._slice = torch.where(going[:, None, None], mel, self._slice)
        fines = torch.stack(fine_logprobs, 1) if fine_logprobs else logprob.new_zeros(self.width, 0)
        return frame, logprob, fines, samples, mel[:, 0]

    def _drawn(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A token a row and its log-probability before temperature, top-k and top-p: (R,), (R,)"""
        token = draw(logits, self._drawing, uniform)
        return token, logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0]


def compiles(bundle: Bundle) -> bool:
    """Is there a compiled step (`model.compiled`) for this bundle on its device?"""
    from model.compiled.slots import can_compile  # imports this module, and takes a second to import

    return can_compile(bundle)


def default_slots(bundle: Bundle) -> int:
    """Slots that suit the device: what one processor core or one GPU can step in real time, by measurement.

    (Torch computes all of its rows at every step; 4 is the fewest that keep rows independent of each other.)
    """
    return 64 if bundle.device.type == "cuda" else 32 if compiles(bundle) else 4


def lanes_for(bundle: Bundle, threads: int) -> int:
    """How many sets of slots may step at the same time: one a core, and one where torch computes."""
    return threads if compiles(bundle) else 1


def slots_for(bundle: Bundle, rows: int, codebooks: int | None = None) -> AnySlots:
    """The fastest slots for a bundle on its device."""
    if compiles(bundle):
        from model.compiled.slots import CompiledSlots

        return CompiledSlots(bundle, rows, codebooks)
    return Slots(bundle, rows, codebooks)
