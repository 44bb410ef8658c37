"""Reads a prompt once, for any number of continuations."""

from collections.abc import Callable

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import StreamingDecoder
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, frames_in
from model.inference import cuda
from model.inference.scoring import MIN_FRAMES, PromptEncoder, TooShortError, chunks
from model.inference.types import PromptState

TAIL_FRAMES = -(-MEL_LEFT_SAMPLES // HOP_SAMPLES)  # that the tail of the decoded prompt reaches into


@torch.inference_mode()
def prefill(
    bundle: Bundle,
    samples: Tensor,
    *,
    codebooks: int | None = None,
    masked: bool = False,
    between: Callable[[], None] = lambda: None,
) -> PromptState:
    """Read a prompt, (N,) samples at 24 kHz; a trailing part of a frame is left out.

    ``between`` is called after each chunk of 4 s, and may raise to end the reading. Raises TooShortError for fewer
    than ``MIN_FRAMES`` frames.
    """
    if frames_in(len(samples)) < MIN_FRAMES:
        raise TooShortError(f"a prompt needs {MIN_FRAMES} whole frames, and this one has {frames_in(len(samples))}")
    memory = StreamingDecoder(bundle.codec).memory
    reader = PromptEncoder(bundle, "masked" if masked else "real", codebooks, decode=memory is None)
    read = []
    for chunk in chunks(samples):
        read.append(reader.read(chunk))
        between()
    if memory is not None:  # what came before leaves no trace: no need to decode it
        codes = torch.cat([forced.codes for forced in read], dim=-1)
        reader.decode_codes(codes[..., -(memory + TAIL_FRAMES) :])
    return PromptState(
        tokens=torch.cat([forced.codes[0, 0] for forced in read]),
        logprobs=torch.cat([forced.logprobs[0] for forced in read]),
        cache=reader.cache,
        codes=read[-1].codes[:, : reader.codebooks, -1],
        slices=reader.slice,
        codec=reader.decoder_state,
        tail=reader.decoded_tail,
        real_tail=reader.real_tail,
        codebooks=reader.codebooks,
        masked=masked,
        ready=cuda.mark(bundle.device),
    )
