"""Continue audio, frame by frame, in the closed loop.

For each frame: the stack predicts the coarse token, the depth decoder the fine codes, the stateful codec decoder makes
the frame's 320 samples, and their mel slice goes back in. The model hears exactly what the listener hears.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import DecoderState, StreamingDecoder
from model.constants import MEL_LEFT_SAMPLES
from model.inference.prefill import prefill
from model.inference.rng import uniforms
from model.inference.sampling import RowOptions, SamplingOptions, draw
from model.inference.types import GeneratedFrame, LoopMel, PromptState
from model.lm.hybrid_lm import LMCache


@dataclass
class LoopState:
    """n continuations under way."""

    cache: LMCache
    codes: Tensor  # (n, k): those of the last frame
    slices: deque[Tensor]  # (n, 1, 64) each, the one to feed first
    codec: DecoderState
    tail: Tensor  # (n, 704)


def fork(prompt: PromptState, n: int) -> LoopState:
    """n continuations of a prompt; the prompt's own state stays as it is."""
    return LoopState(
        cache=prompt.cache.repeated(n),
        codes=prompt.codes.expand(n, -1),
        slices=deque([prompt.slices[:, -1:].expand(n, 1, -1)]),
        codec=prompt.codec.repeated(n),
        tail=prompt.tail.expand(n, MEL_LEFT_SAMPLES),
    )


def _drawn(logits: Tensor, options: RowOptions, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A token a row and its log-probability before temperature, top-k and top-p: (n,), (n,)"""
    token = draw(logits, options, uniform)
    return token, logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0]


def step(
    bundle: Bundle,
    decoder: StreamingDecoder,
    state: LoopState,
    options: RowOptions,
    uniform: Tensor,
    masked: bool,
    index: int,
    given: Tensor | None = None,
) -> GeneratedFrame:
    """Make one frame of every row; ``state`` moves on. uniform: (n, k) float64. given: (n, 64) replaces the mel."""
    model = bundle.lm
    slices = None if masked else state.slices[0]
    hidden = model(state.codes[:, :1], slices, cache=state.cache)[:, 0]  # (n, dim)
    code, logprob = _drawn(model.logits(hidden), options, uniform[:, 0])
    codes, fine_logprobs = [code], []
    total = model.fine.start(hidden, state.codes)
    for book in range(1, uniform.shape[1]):
        total = model.fine.add(total, book - 1, codes[-1])
        fine, fine_logprob = _drawn(model.fine.logits(total, book), options, uniform[:, book])
        codes.append(fine)
        fine_logprobs.append(fine_logprob)
    frame = torch.stack(codes, dim=1)  # (n, k)
    samples, state.codec = decoder.step(frame[..., None], state.codec)
    mel = bundle.mel(samples, state.tail)[:, 0] if given is None else given
    state.tail = torch.cat([state.tail, samples], dim=-1)[:, -MEL_LEFT_SAMPLES:]
    state.codes = frame
    state.slices.append(mel[:, None])
    state.slices.popleft()
    fines = torch.stack(fine_logprobs, dim=1) if fine_logprobs else logprob.new_zeros(len(code), 0)
    return GeneratedFrame(index, frame, logprob, fines, samples, mel)


def generate(
    bundle: Bundle,
    prompt: Tensor | PromptState,
    *,
    frames: int,
    options: SamplingOptions,
    n: int = 1,
    mel: LoopMel = "decoded",
    codebooks: int | None = None,
    reference: Tensor | None = None,
) -> Iterator[GeneratedFrame]:
    """Continue a prompt.

    Args:
        bundle: the model.
        prompt: (N,) samples at 24 kHz, or what `prefill` made of them.
        frames: how many to make.
        options: how tokens are drawn; each choice has its own random numbers.
        n: continuations of the same prompt.
        mel: where the slice of a made frame comes from: ``decoded`` is the closed loop, ``masked`` gives none (and none
            for the prompt), ``real`` takes it from ``reference``, the true continuation (an oracle, for evaluation).
        codebooks: codes a frame, 1 to the codec's number; all by default.
        reference: (M,) samples that follow the prompt, at least ``frames`` frames.

    Raises:
        TooShortError: the prompt is too short.
        ValueError: arguments that do not fit together.
    """
    if (reference is not None) != (mel == "real"):
        raise ValueError("mel='real' needs the true continuation as reference, and only that does")
    if codebooks is not None and not 1 <= codebooks <= bundle.codec.config.codebooks:
        raise ValueError(f"{codebooks} codebooks of {bundle.codec.config.codebooks}")
    with torch.inference_mode():
        state_of = prompt if isinstance(prompt, PromptState) else None
        if state_of is None:
            assert isinstance(prompt, Tensor)
            state_of = prefill(bundle, prompt, codebooks=codebooks, masked=mel == "masked")
        if state_of.masked != (mel == "masked") or codebooks not in (None, state_of.codebooks):
            raise ValueError("the prompt was read for another mel source or number of codebooks")
        numbers = torch.stack(
            [torch.from_numpy(uniforms(options.seed, c, 0, frames, state_of.codebooks)) for c in range(n)]
        ).to(bundle.device)  # (n, frames, k)
        given: Tensor | None = None
        if reference is not None:
            given = bundle.mel(reference[None].to(state_of.tail), state_of.real_tail)
            if given.shape[1] < frames:
                raise ValueError(f"the reference holds {given.shape[1]} frames of {frames}")
        decoder = StreamingDecoder(bundle.codec)
        state = fork(state_of, n)
        drawing = RowOptions([options] * n, bundle.device)
    for index in range(frames):
        with (
            torch.inference_mode()
        ):  # not around the yield: the mode belongs to the thread, and the caller has the thread
            slices = None if given is None else given[:, index].expand(n, -1)
            made = step(bundle, decoder, state, drawing, numbers[:, index], state_of.masked, index, slices)
        yield made
