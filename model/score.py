"""Likelihoods of given audio, by teacher forcing, in memory that does not grow with the clip.

The clip passes in chunks through the streaming encoder and the ring cache, which are exact, so the chunk size is no
part of the result: every token is scored with the full window of context.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.bundle import Bundle
from model.codec.streaming import DecoderState, EncoderState, StreamingDecoder, StreamingEncoder
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES
from model.hybrid import BOS, LMCache

MelSource = Literal["real", "decoded", "masked"]
CHUNK_FRAMES = 750  # 10 s: bounds the memory, and is long enough to be efficient
MIN_FRAMES = 7  # a clip must fill EnCodec's first reflection


class TooShortError(ValueError):
    """The clip holds fewer than ``MIN_FRAMES`` whole frames (0.093 s)."""


@dataclass(frozen=True)
class Score:
    """Likelihoods of a clip's coarse tokens under the model's own distribution.

    ``tokens`` (T,) int64, ``logprobs`` (T,) natural logarithms, ``correct`` (T,) bool: was it the most likely one. The
    first ``context_frames`` of the clip are context only and are not in here.
    """

    tokens: Tensor
    logprobs: Tensor
    correct: Tensor
    context_frames: int = 0

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return -float(self.logprobs.double().mean())

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())

    @property
    def bits_per_second(self) -> float:
        """Bits that the model needs for a second of coarse tokens."""
        return self.nll / math.log(2) * FRAME_RATE_HZ


@dataclass
class Forced:
    """What a chunk of teacher forcing gives: (rows, n) each, and the samples decoded on the way, if they were."""

    codes: Tensor  # (1, K, n)
    slices: Tensor  # (1, n, 64): the slices that go with the codes
    logprobs: Tensor
    correct: Tensor


class Reader:
    """Reads a clip chunk by chunk and keeps all that is needed to go on after it.

    The language model is one frame behind: the last code and slice wait in ``token`` and ``slice`` until the next
    chunk, or the first made frame, predicts from them.
    """

    def __init__(
        self, bundle: Bundle, mel: MelSource = "real", codebooks: int | None = None, decode: bool = False
    ) -> None:
        self.bundle, self.source = bundle, mel
        self.codebooks = codebooks or bundle.codec.config.codebooks
        self.encoder = StreamingEncoder(bundle.codec)
        self.encoder_state: EncoderState = self.encoder.start(1)
        self.decoder = StreamingDecoder(bundle.codec)
        self.decoder_state: DecoderState = self.decoder.start(1)
        self.decode = decode or mel == "decoded"
        device = bundle.device
        self.cache: LMCache = bundle.decoder.new_cache(1)
        self.token = torch.full((1, 1), BOS, device=device)
        self.slice = torch.zeros(1, 1, MEL_BANDS, device=device)
        self.real_tail = torch.zeros(1, MEL_LEFT_SAMPLES, device=device)
        self.decoded_tail = torch.zeros(1, MEL_LEFT_SAMPLES, device=device)

    def read(self, samples: Tensor) -> Forced:
        """The next (320 n,) samples of the clip."""
        samples = samples[None].to(self.real_tail)
        codes, self.encoder_state = self.encoder.step(samples, self.encoder_state)
        real = self.bundle.mel(samples, self.real_tail)
        self.real_tail = torch.cat([self.real_tail, samples], dim=-1)[:, -MEL_LEFT_SAMPLES:]
        slices = real
        if self.decode:
            made, self.decoder_state = self.decoder.step(codes[:, : self.codebooks], self.decoder_state)
            if self.source == "decoded":
                slices = self.bundle.mel(made, self.decoded_tail)
            self.decoded_tail = torch.cat([self.decoded_tail, made], dim=-1)[:, -MEL_LEFT_SAMPLES:]
        logprobs, correct = self.force(codes[:, 0], slices)
        return Forced(codes, slices, logprobs, correct)

    def force(self, tokens: Tensor, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Score coarse tokens (1, n) that come with slices (1, n, 64): log-probabilities and hits, (1, n) each."""
        model = self.bundle.decoder
        inputs = torch.cat([self.token, tokens[:, :-1]], dim=1)
        mel = None if self.source == "masked" else torch.cat([self.slice, slices[:, :-1]], dim=1)
        logits = model.logits(model(inputs, mel, cache=self.cache)).float()
        logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        self.token, self.slice = tokens[:, -1:], slices[:, -1:]
        return logprobs, logits.argmax(-1) == tokens


def chunks(samples: Tensor | Iterable[Tensor], frames: int = CHUNK_FRAMES) -> Iterator[Tensor]:
    """Regroup blocks of samples into chunks of ``frames`` whole frames; the last one is shorter, and whole.

    A last chunk is never shorter than ``MIN_FRAMES`` unless the clip is.
    """
    size = frames * HOP_SAMPLES
    held = torch.zeros(0)
    for block in [samples] if isinstance(samples, Tensor) else samples:
        held = torch.cat([held, block.to(held)])
        while len(held) >= size + MIN_FRAMES * HOP_SAMPLES:
            yield held[:size]
            held = held[size:]
    whole = len(held) // HOP_SAMPLES * HOP_SAMPLES
    if whole:
        yield held[:whole]


@torch.inference_mode()
def score(
    bundle: Bundle,
    samples: Tensor | Iterable[Tensor],
    *,
    context_frames: int = 0,
    mel: MelSource = "real",
    codebooks: int | None = None,
    chunk_frames: int = CHUNK_FRAMES,
) -> Score:
    """Likelihoods of a clip.

    Args:
        bundle: the model.
        samples: (N,) at 24 kHz, or blocks of them in turn.
        context_frames: so many frames at the start are context and not scored.
        mel: where the slices come from: the clip, what the codec decodes from its codes, or nowhere.
        codebooks: how many codebooks ``mel="decoded"`` decodes from; all by default.
        chunk_frames: bounds the memory; not part of the result.

    Raises:
        TooShortError: fewer than ``MIN_FRAMES`` frames, or none left after the context.
    """
    reader = Reader(bundle, mel, codebooks)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in chunks(samples, chunk_frames):
        if len(chunk) < MIN_FRAMES * HOP_SAMPLES:
            break
        forced = reader.read(chunk)
        parts.append((forced.codes[0, 0].cpu(), forced.logprobs[0].cpu(), forced.correct[0].cpu()))
    if not parts:
        raise TooShortError(f"a clip needs {MIN_FRAMES} whole frames of {HOP_SAMPLES} samples at 24 kHz")
    tokens, logprobs, correct = (torch.cat(part)[context_frames:] for part in zip(*parts, strict=True))
    if not len(tokens):
        raise TooShortError(f"nothing is left to score after {context_frames} frames of context")
    return Score(tokens, logprobs, correct, context_frames)
