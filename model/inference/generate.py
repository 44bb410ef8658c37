"""Continue audio, frame by frame: a loop over `model.inference.closed_loop`, with no rows but those asked for."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import StreamingDecoder
from model.constants import MEL_LEFT_SAMPLES
from model.inference.closed_loop import LoopState, closed_loop_step
from model.inference.prefill import prefill
from model.inference.rng import uniforms
from model.inference.sampling import RowOptions, SamplingOptions
from model.inference.types import GeneratedFrame, LoopMel, PromptState


def fork(prompt: PromptState, n: int) -> LoopState:
    """The state of n continuations of a prompt; the prompt's own stays as it is."""
    return LoopState(
        codes=prompt.codes.expand(n, -1),
        mel=prompt.mel[:, -1:].expand(n, 1, -1),
        codec=prompt.codec.repeated(n),
        tail=prompt.tail.expand(n, MEL_LEFT_SAMPLES),
    )


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
        mel: where the mel of a made frame comes from: ``decoded`` is the closed loop, ``masked`` gives none (and none
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
        cache, state = state_of.cache.repeated(n), fork(state_of, n)
        drawing = RowOptions([options] * n, bundle.device)
    for index in range(frames):
        # not around the yield: the mode belongs to the thread, and the caller has the thread
        with torch.inference_mode():
            frame, state = closed_loop_step(
                bundle, decoder, cache, state, drawing, numbers[:, index], masked=state_of.masked,
                given=None if given is None else given[:, index].expand(n, -1),
            )  # fmt: skip
        yield GeneratedFrame(index, *frame)
