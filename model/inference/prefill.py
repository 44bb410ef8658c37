"""Reads a prompt once, for any number of continuations; whole, or as it comes."""

from collections.abc import Callable

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, frames_in
from model.inference import cuda
from model.inference.scoring import MIN_FRAMES, ForcedChunk, PromptEncoder, TooShortError, chunks
from model.inference.types import PromptState

TAIL_FRAMES = -(-MEL_LEFT_SAMPLES // HOP_SAMPLES)  # that the tail of the decoded prompt reaches into


class PromptReader:
    """A prompt chunk by chunk, as it comes; the chunks' sizes are no part of the result, but for rounding."""

    def __init__(self, bundle: Bundle, codebooks: int | None = None, masked: bool = False) -> None:
        self._past = bundle.codec.decoder.receptive_field
        self._bundle, self._masked = bundle, masked
        with torch.inference_mode():
            self._encoder = PromptEncoder(bundle, "masked" if masked else "real", codebooks, decode=self._past is None)
        self._read: list[ForcedChunk] = []

    @torch.inference_mode()
    def read(self, samples: Tensor) -> ForcedChunk:
        """The next (320 n,) samples at 24 kHz; the first ones are at least ``MIN_FRAMES`` frames."""
        self._read.append(self._encoder.read(samples))
        return self._read[-1]

    @torch.inference_mode()
    def state(self) -> PromptState:
        """The state after all that was read. Nothing can be read after that."""
        read, encoder = self._read, self._encoder
        if self._past is not None:  # what came before that leaves no trace: no need to decode it
            codes = torch.cat([chunk.codes for chunk in read], dim=-1)
            encoder.decode_codes(codes[..., -(self._past + TAIL_FRAMES) :])
        # Copies of what are ends of the last chunk: for as long as the state is kept, views would keep the whole chunk.
        return PromptState(
            tokens=torch.cat([chunk.codes[0, 0] for chunk in read]),
            logprobs=torch.cat([chunk.logprobs[0] for chunk in read]),
            cache=encoder.cache,
            codes=read[-1].codes[:, : encoder.codebooks, -1].clone(),
            mel=encoder.mel.clone(),
            codec=encoder.decoder_state,
            tail=encoder.decoded_tail.clone(),
            real_tail=encoder.real_tail.clone(),
            codebooks=encoder.codebooks,
            masked=self._masked,
            ready=cuda.mark(self._bundle.device),
        )


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
    reader = PromptReader(bundle, codebooks, masked)
    for chunk in chunks(samples):
        reader.read(chunk)
        between()
    return reader.state()
