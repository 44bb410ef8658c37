"""One step of the closed loop in torch: the only one, for `model.inference.generate` and for the torch backend.

For each frame: the stack predicts the coarse token, the depth decoder the fine codes, the codec's decoder makes the
frame's 320 samples, and their mel frame goes back in. The model is given exactly what is played.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import DecoderState, StreamingDecoder
from model.constants import MEL_LEFT_SAMPLES
from model.inference.sampling import RowOptions, draw_scored
from model.lm.hybrid_lm import LMCache, LMSlots


class LoopState(NamedTuple):
    """What a frame leaves for the next one, beside the language model's cache; rows first."""

    codes: Tensor  # (R, K) int64: those of the last frame, whose coarse token the model has not seen yet
    mel: Tensor  # (R, 1, 64): the mel frame that goes with them
    codec: DecoderState
    tail: Tensor  # (R, 704): the last samples, which the next mel frame looks back at


class LoopFrame(NamedTuple):
    """One frame of each row."""

    codes: Tensor  # (R, K) int64
    logprobs: Tensor  # (R,): of the coarse token, under the model's own distribution
    fine_logprobs: Tensor  # (R, K - 1)
    samples: Tensor  # (R, 320)
    mel: Tensor  # (R, 64): the mel frame that the next position is given


def closed_loop_step(
    bundle: Bundle,
    decoder: StreamingDecoder,
    cache: LMCache | LMSlots,
    state: LoopState,
    options: RowOptions,
    uniform: Tensor,
    *,
    masked: bool = False,
    given: Tensor | None = None,
) -> tuple[LoopFrame, LoopState]:
    """Make one frame of every row, and the state after it; ``state`` stays as it is.

    Args:
        bundle: the model.
        decoder: of the bundle's codec.
        cache: the positions so far. It takes in the one of this step (`LMSlots`: when the caller advances it).
        state: what the frame before left.
        options: how each row draws.
        uniform: (R, K) float64, the numbers that draw the codes.
        masked: give the model no mel frame.
        given: (R, 64), a mel frame instead of that of the samples made.
    """
    model = bundle.lm
    hidden = model(state.codes[:, :1], None if masked else state.mel, cache=cache)[:, 0]  # (R, dim)
    coarse, logprobs = draw_scored(model.logits(hidden), options, uniform[:, 0], bundle.level_of)
    codes, fine_logprobs = [coarse], []

    def drawn(logits: Tensor, book: int) -> Tensor:
        code, logprob = draw_scored(logits, options, uniform[:, book])
        codes.append(code)
        fine_logprobs.append(logprob)
        return code

    model.fine.run(hidden, state.codes, coarse, uniform.shape[1], drawn)
    frame = torch.stack(codes, dim=1)
    fines = torch.stack(fine_logprobs, dim=1) if fine_logprobs else logprobs.new_zeros(len(frame), 0)
    samples, codec = decoder.step(frame[..., None], state.codec)
    mel = bundle.mel(samples, state.tail)[:, 0] if given is None else given
    tail = torch.cat([state.tail, samples], dim=-1)[:, -MEL_LEFT_SAMPLES:]
    return LoopFrame(frame, logprobs, fines, samples, mel), LoopState(frame, mel[:, None], codec, tail)
