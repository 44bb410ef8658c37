"""Likelihoods of given audio, by teacher forcing, in memory that does not grow with the clip.

The clip passes in chunks through the streaming encoder and the ring cache, which are exact, so the chunk size is no
part of the result: every token is scored with the full window of context.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import DecoderState, EncoderState, StreamingDecoder
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES
from model.inference.backend import encoder_for
from model.lm.hybrid_lm import BOS, LMCache

MelSource = Literal["real", "decoded", "masked"]
Baseline = Literal["unigram", "alone"]
CHUNK_FRAMES = 300  # 4 s: bounds the memory; longer ones leave the processor's caches (29 against 24 x real time)
MIN_FRAMES = 7  # a clip must fill EnCodec's first reflection


class TooShortError(ValueError):
    """The clip holds fewer than ``MIN_FRAMES`` whole frames (0.093 s)."""


class WindowError(ValueError):
    """A window does not lie within the clip; ``edge`` says which end of it is at fault."""

    def __init__(self, message: str, edge: Literal["start", "stop"]) -> None:
        super().__init__(message)
        self.edge = edge


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop`` (not included; None = the end) of a clip, to be scored by themselves.

    With ``alone`` the language model also reads them as a document of their own.
    """

    start: int = 0
    stop: int | None = None
    alone: bool = False

    def within(self, position: int, frames: int) -> slice:
        """The part of a chunk of ``frames`` frames, which begins at frame ``position``, that lies in the window."""
        stop = frames if self.stop is None else min(max(self.stop - position, 0), frames)
        return slice(min(max(self.start - position, 0), stop), stop)


@dataclass(frozen=True)
class Detail:
    """What is told of every position beside its token's log-probability.

    ``spread``: entropy and rank. ``alternatives``: so many of the most likely tokens.
    """

    spread: bool = False
    alternatives: int = 0


@dataclass(frozen=True)
class Positions:
    """Of each of T positions, under the model's own distribution; what was not asked for is None.

    ``entropy`` (T,) float32, nats. ``rank`` (T,) int64: of the true token, 1 = the most likely one; of equally likely
    tokens the one with the lower number comes first, so that ``rank == 1`` is a hit. ``top_tokens`` (T, k) int64 and
    ``top_logprobs`` (T, k) float32: the k most likely tokens, in the same order.
    """

    entropy: Tensor | None = None
    rank: Tensor | None = None
    top_tokens: Tensor | None = None
    top_logprobs: Tensor | None = None

    @classmethod
    def of(cls, logprobs: Tensor, tokens: Tensor, detail: Detail) -> "Positions":
        """From the logarithms of all tokens' probabilities, (T, V), and the true tokens, (T,)."""
        entropy = rank = top_tokens = top_logprobs = None
        if detail.spread:
            entropy = torch.special.entr(logprobs.exp()).sum(-1)  # a probability of 0 counts 0
            own = logprobs.gather(-1, tokens[:, None])
            numbers = torch.arange(logprobs.shape[-1], device=tokens.device)
            before = (logprobs > own) | ((logprobs == own) & (numbers < tokens[:, None]))
            rank = before.sum(-1) + 1
        if detail.alternatives:
            ordered, numbers = logprobs.sort(dim=-1, descending=True, stable=True)
            top_logprobs, top_tokens = (part[:, : detail.alternatives].clone() for part in (ordered, numbers))
        return cls(entropy, rank, top_tokens, top_logprobs)

    @classmethod
    def joined(cls, parts: "list[Positions]", rest: slice) -> "Positions":
        """Chunks in a row, of which only the frames in ``rest`` count."""

        def join(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)[rest]

        return cls(*(join(field.name) for field in fields(cls)))

    def cpu(self) -> "Positions":
        values = (getattr(self, field.name) for field in fields(self))
        return Positions(*(None if value is None else value.cpu() for value in values))


@dataclass(frozen=True)
class Scan:
    """Mean negative log-likelihoods of windows of ``length`` frames, one every ``step`` frames from ``start`` on.

    ``nll`` (n,) float64, nats a token; ``baseline_nll`` (n,) the same by the bundle's unigram counts. All windows lie
    within the clip.
    """

    start: int
    length: int
    step: int
    nll: Tensor
    baseline_nll: Tensor


@dataclass(frozen=True)
class WindowScore:
    """Log-probabilities of a window's coarse tokens, (n,) each, natural logarithms.

    ``logprobs``: given all of the clip before. ``unigram``: by the bundle's own counts. ``alone``: given only what
    stands in the window before them, when that was asked for; the tokens and mel frames are the clip's, so that
    ``logprobs - alone`` is what the earlier frames tell of these (arXiv 2601.06329, normalised likelihood).
    """

    start: int
    logprobs: Tensor
    unigram: Tensor
    alone: Tensor | None = None

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return -float(self.logprobs.double().mean())

    @property
    def log_likelihood(self) -> float:
        """The sum over the window's tokens, nats."""
        return float(self.logprobs.double().sum())

    def scan(self, length: int, step: int) -> Scan:
        """Windows within this one. Raises WindowError when not even one fits."""
        if length > len(self.logprobs):
            have = f"{len(self.logprobs) / FRAME_RATE_HZ:.2f} s of the clip are left for it"
            raise WindowError(f"a window has {length / FRAME_RATE_HZ:.2f} s, and {have}", "stop")

        def means(logprobs: Tensor) -> Tensor:
            """By differences of running sums: the cost does not grow with the windows' overlap."""
            sums = torch.cat([torch.zeros(1, dtype=torch.float64), logprobs.double().cumsum(0)])
            return (sums[:-length] - sums[length:])[::step] / length

        return Scan(self.start, length, step, means(self.logprobs), means(self.unigram))

    def baseline_nll(self, by: Baseline) -> float:
        """Mean negative log-likelihood of the same tokens without the clip's past, nats a token."""
        baseline = self.unigram if by == "unigram" else self.alone
        assert baseline is not None, "the window was not read alone"
        return -float(baseline.double().mean())


@dataclass(frozen=True)
class Score:
    """Likelihoods of a clip's coarse tokens under the model's own distribution.

    ``tokens`` (T,) int64, ``logprobs`` (T,) natural logarithms, ``correct`` (T,) bool: was it the most likely one. The
    first ``context_frames`` of the clip are context only and are not in here. ``window``: the part that was asked for.
    ``positions``: more of every position, if that was asked for.
    """

    tokens: Tensor
    logprobs: Tensor
    correct: Tensor
    context_frames: int = 0
    window: WindowScore | None = None
    positions: Positions | None = None

    @property
    def finite(self) -> bool:
        """No likelihood is NaN or infinite."""
        alone = None if self.window is None else self.window.alone
        return all(bool(torch.isfinite(part).all()) for part in (self.logprobs, alone) if part is not None)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return -float(self.logprobs.double().mean())

    @property
    def log_likelihood(self) -> float:
        """The sum over all tokens that are scored, nats."""
        return float(self.logprobs.double().sum())

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
class ForcedChunk:
    """What a chunk of teacher forcing gives: (rows, n) each, and the samples decoded on the way, if they were."""

    codes: Tensor  # (1, K, n)
    mel: Tensor  # (1, n, 64): the mel frames that go with the codes
    logprobs: Tensor
    correct: Tensor
    positions: Positions | None = None


class TeacherForcing:
    """The language model's place in a document.

    It is one frame behind: the last code and mel frame wait in ``token`` and ``mel`` until the next chunk, or the first
    made frame, predicts from them.
    """

    def __init__(self, bundle: Bundle, mel: MelSource = "real", detail: Detail | None = None) -> None:
        self.bundle, self.source, self.detail = bundle, mel, detail
        self.cache: LMCache = bundle.lm.new_cache(1)
        self.token = torch.full((1, 1), BOS, device=bundle.device)
        self.mel = torch.zeros(1, 1, MEL_BANDS, device=bundle.device)

    def force(self, tokens: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Positions | None]:
        """Score coarse tokens (1, n) that come with mel frames (1, n, 64).

        Returns log-probabilities and hits, (1, n) each, and what ``detail`` asks for.
        """
        model = self.bundle.lm
        inputs = torch.cat([self.token, tokens[:, :-1]], dim=1)
        late = None if self.source == "masked" else torch.cat([self.mel, mel[:, :-1]], dim=1)
        logits = model.logits(model(inputs, late, cache=self.cache)).float()
        of_all = logits.log_softmax(-1)
        logprobs = of_all.gather(-1, tokens[..., None])[..., 0]
        self.token, self.mel = tokens[:, -1:], mel[:, -1:]
        positions = None if self.detail is None else Positions.of(of_all[0], tokens[0], self.detail)
        return logprobs, logits.argmax(-1) == tokens, positions


class PromptEncoder(TeacherForcing):
    """Reads a clip chunk by chunk and keeps all that is needed to go on after it."""

    def __init__(
        self,
        bundle: Bundle,
        mel: MelSource = "real",
        codebooks: int | None = None,
        decode: bool = False,
        detail: Detail | None = None,
    ) -> None:
        super().__init__(bundle, mel, detail)
        self.codebooks = codebooks or bundle.codec.config.codebooks
        self.encoder = encoder_for(bundle.codec)
        self.encoder_state: EncoderState = self.encoder.start(1)
        self.decoder = StreamingDecoder(bundle.codec)
        self.decoder_state: DecoderState = self.decoder.start(1)
        self.decode = decode or mel == "decoded"
        self.real_tail = torch.zeros(1, MEL_LEFT_SAMPLES, device=bundle.device)
        self.decoded_tail = torch.zeros(1, MEL_LEFT_SAMPLES, device=bundle.device)

    def read(self, samples: Tensor) -> ForcedChunk:
        """The next (320 n,) samples of the clip."""
        samples = samples[None].to(self.real_tail)
        codes, self.encoder_state = self.encoder.step(samples, self.encoder_state)
        mel = self.bundle.mel(samples, self.real_tail)
        self.real_tail = torch.cat([self.real_tail, samples], dim=-1)[:, -MEL_LEFT_SAMPLES:]
        if self.decode:
            before = self.decoded_tail
            made = self.decode_codes(codes)
            if self.source == "decoded":
                mel = self.bundle.mel(made, before)
        return ForcedChunk(codes, mel, *self.force(codes[:, 0], mel))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode the next codes (1, K, n): (1, 320 n) samples; the decoder's state and its last samples move on."""
        made, self.decoder_state = self.decoder.step(codes[:, : self.codebooks], self.decoder_state)
        self.decoded_tail = torch.cat([self.decoded_tail, made], dim=-1)[:, -MEL_LEFT_SAMPLES:]
        return made


def chunks(samples: Tensor | Iterable[Tensor], frames: int = CHUNK_FRAMES) -> Iterator[Tensor]:
    """Regroup blocks of samples into chunks of ``frames`` whole frames; the last one is shorter, and whole.

    A last chunk is never shorter than ``MIN_FRAMES`` unless the clip is.
    """
    size = frames * HOP_SAMPLES
    rest = torch.zeros(0)
    for block in [samples] if isinstance(samples, Tensor) else samples:
        rest = torch.cat([rest, block.to(rest)])
        while len(rest) >= size + MIN_FRAMES * HOP_SAMPLES:
            yield rest[:size]
            rest = rest[size:]
    whole = len(rest) // HOP_SAMPLES * HOP_SAMPLES
    if whole:
        yield rest[:whole]


def _windowed(bundle: Bundle, window: Window, tokens: Tensor, logprobs: Tensor, alone: list[Tensor]) -> WindowScore:
    """The window's part of a clip's tokens and log-probabilities, (T,) each. Raises WindowError."""
    total = len(tokens)
    clip = f"and the clip has {total / FRAME_RATE_HZ:.2f} s"
    if window.start >= total:
        raise WindowError(f"the window starts at {window.start / FRAME_RATE_HZ:.2f} s, {clip}", "start")
    if window.stop is not None and window.stop > total + 1:  # an end within the clip's last, partial frame is no fault
        raise WindowError(f"the window ends at {window.stop / FRAME_RATE_HZ:.2f} s, {clip}", "stop")
    inside = window.within(0, total)
    unigram = bundle.lm.unigram.cpu()[tokens[inside]]
    return WindowScore(window.start, logprobs[inside], unigram, torch.cat(alone) if window.alone else None)


@torch.inference_mode()
def score(
    bundle: Bundle,
    samples: Tensor | Iterable[Tensor],
    *,
    context_frames: int = 0,
    mel: MelSource = "real",
    codebooks: int | None = None,
    chunk_frames: int = CHUNK_FRAMES,
    window: Window | None = None,
    detail: Detail | None = None,
) -> Score:
    """Likelihoods of a clip.

    Args:
        bundle: the model.
        samples: (N,) at 24 kHz, or blocks of them in turn.
        context_frames: so many frames at the start are context and not scored.
        mel: where the mel frames come from: the clip, what the codec decodes from its codes, or nowhere.
        codebooks: how many codebooks ``mel="decoded"`` decodes from; all by default.
        chunk_frames: bounds the memory; not part of the result.
        window: frames, counted from the clip's start, that are scored by themselves as well.
        detail: what else to tell of every position; no part of the other figures.

    Raises:
        TooShortError: fewer than ``MIN_FRAMES`` frames, or none left after the context.
        WindowError: the window does not lie within the clip.
    """
    reader = PromptEncoder(bundle, mel, codebooks, detail=detail)
    fresh = TeacherForcing(bundle, mel)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    alone: list[Tensor] = []
    positions: list[Positions] = []
    position = 0
    for chunk in chunks(samples, chunk_frames):
        if len(chunk) < MIN_FRAMES * HOP_SAMPLES:
            break
        forced = reader.read(chunk)
        tokens = forced.codes[0, 0].cpu().clone()  # a view would keep the other codebooks for as long as the clip lasts
        parts.append((tokens, forced.logprobs[0].cpu(), forced.correct[0].cpu()))
        if forced.positions is not None:
            positions.append(forced.positions.cpu())
        frames = forced.codes.shape[-1]
        if window is not None and window.alone:
            inside = window.within(position, frames)
            if inside.start < inside.stop:
                alone.append(fresh.force(forced.codes[:, 0, inside], forced.mel[:, inside])[0][0].cpu())
        position += frames
    if not parts:
        raise TooShortError(f"a clip needs {MIN_FRAMES} whole frames of {HOP_SAMPLES} samples at 24 kHz")
    tokens, logprobs, correct = (torch.cat(part) for part in zip(*parts, strict=True))
    if position <= context_frames:
        raise TooShortError(f"nothing is left to score after {context_frames} frames of context")
    local = None if window is None else _windowed(bundle, window, tokens, logprobs, alone)
    rest = slice(context_frames, None)
    more = Positions.joined(positions, rest) if positions else None
    return Score(tokens[rest], logprobs[rest], correct[rest], context_frames, local, more)
