"""What the engine is asked to do, and what it answers: jobs, the events of a stream, results."""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from app.errors import DeadlinePassed
from app.metrics import Metrics
from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, SAMPLE_RATE_HZ
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.scoring import CHUNK_FRAMES, Score, Window, score
from model.inference.types import PromptState

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Stage = Literal["queue", "prefill", "slot", "step", "score", "done"]


class Cancelled(Exception):
    """Nobody waits for this job any more."""


class NotFinite(Exception):
    """The model gave a likelihood or a sample that is not a number."""


@dataclass(frozen=True)
class PrefillDone:
    """The first event of a streamed continuation: the prompt has been read."""

    prompt_logprobs: FloatArray  # (T,)
    tail: FloatArray  # (704,): the end of the prompt as the codec decodes it
    queue_seconds: float
    prefill_seconds: float


@dataclass(frozen=True)
class AudioChunk:
    """F frames of one choice; the pieces of a choice come in order, and joined they are the whole."""

    choice: int
    first: int  # index of its first frame
    tokens: IntArray  # (F,)
    logprobs: FloatArray  # (F,)
    samples: FloatArray  # (320 F,), before `audio.mixing.limit`


FinishReason = Literal["length", "timeout", "cancelled"]  # cancelled: the server stopped before the end


@dataclass(frozen=True)
class GenerationResult:
    """What a `ContinueRequest` made. The lists hold an entry a choice; choices are of one length unless time was up."""

    prompt_logprobs: FloatArray  # (T,)
    tokens: list[IntArray]  # (F,) each
    logprobs: list[FloatArray]  # (F,) each
    samples: list[FloatArray]  # (320 F,) each; empty when they were streamed
    tail: FloatArray  # (704,)
    finish_reasons: list[FinishReason]
    queue_seconds: float
    prefill_seconds: float
    first_audio_seconds: float  # from arrival to the first made frame
    loop_seconds: float  # from the first choice's joining to the last one's end

    @property
    def finish_reason(self) -> FinishReason:
        """That of the whole: the worst of its choices'."""
        return next((reason for reason in ("cancelled", "timeout") if reason in self.finish_reasons), "length")

    @property
    def made_seconds(self) -> float:
        """Audio made, all choices together."""
        return sum(map(len, self.tokens)) * HOP_SAMPLES / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Failure:
    """The last event of a job that failed."""

    error: BaseException


class ResultQueue:
    """Where a job's events go: a queue of the event loop that waits for them. Any thread may put."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, *events: Any) -> None:
        def deliver() -> None:
            for event in events:
                self.events.put_nowait(event)

        with suppress(RuntimeError):  # the event loop has closed: nobody waits
            self.loop.call_soon_threadsafe(deliver)


class Host(Protocol):
    """What a job may ask of the engine that runs it."""

    bundle: Bundle
    codebooks: int
    metrics: Metrics

    def heartbeat(self, job: "EngineRequest") -> None:
        """Shows life, and ends the job when nobody waits for it, or can: raises Cancelled or Draining."""

    def start_sequences(self, job: "ContinueRequest", prompt: PromptState, started: PrefillDone) -> None:
        """A prompt has been read: its choices wait for slots."""


@dataclass
class EngineRequest(ABC):
    """Work for the engine. Times are `time.monotonic` seconds."""

    arrived: float
    deadline: float
    cancelled: threading.Event = field(default_factory=threading.Event, init=False)
    submitted: float = field(default=0.0, init=False)
    started: float = field(default=0.0, init=False)  # it computes what it was asked for; until then it waits
    stage: Stage = field(default="queue", init=False)
    streamed: bool = field(default=False, init=False)
    ticket: ResultQueue | None = field(default=None, init=False)
    begun: bool = field(default=False, init=False)  # a thread has it, or had it
    kind: ClassVar[Literal["read", "score"]] = "read"  # which of the engine's threads do it
    starts_at_once: ClassVar[bool] = True  # when its thread takes it, and ends with `run`

    @abstractmethod
    def run(self, engine: "Host") -> Any:
        """Runs on one of the engine's threads; calls ``engine.heartbeat(self)`` at least once a chunk.

        Returns the result, unless other threads go on with it.
        """

    def forget(self) -> None:  # noqa: B027 - a job without anything large has nothing to do
        """Nobody waits: lets go of what is large. The job may still stand in a queue."""


@dataclass
class ContinueRequest(EngineRequest):
    """Continue a prompt, (N,) samples at 24 kHz. Raises TooShortError, or DeadlinePassed when nothing is ready."""

    prompt: FloatArray | None
    frames: int
    options: SamplingOptions
    n: int

    starts_at_once = False

    def forget(self) -> None:
        self.prompt = None

    def _go_on(self, engine: "Host") -> None:
        engine.heartbeat(self)
        if time.monotonic() > self.deadline:
            raise DeadlinePassed("the prompt could not be read in time")

    def run(self, engine: "Host") -> None:
        """Reads the prompt; the choices then wait for slots."""
        samples = self.prompt
        if samples is None:
            raise Cancelled
        self.stage = "prefill"
        begin = time.monotonic()
        prompt = prefill(
            engine.bundle, torch.from_numpy(samples), codebooks=engine.codebooks, between=lambda: self._go_on(engine)
        )
        took = time.monotonic() - begin
        engine.metrics.prefill_seconds.observe(took)
        logprobs = prompt.logprobs.cpu().numpy()
        if not np.isfinite(logprobs).all():
            raise NotFinite
        count_read(engine.metrics, prompt.nll, len(prompt.tokens))
        started = PrefillDone(logprobs, prompt.tail[0, -MEL_LEFT_SAMPLES:].cpu().numpy(), begin - self.submitted, took)
        self.stage = "slot"
        engine.start_sequences(self, prompt, started)


@dataclass
class ScoreRequest(EngineRequest):
    """Score one clip, (N,) samples at 24 kHz. Raises TooShortError or WindowError."""

    clip: FloatArray | None
    context_frames: int
    window: Window | None = None

    kind = "score"

    def forget(self) -> None:
        self.clip = None

    def run(self, engine: "Host") -> Score:
        clip = self.clip
        if clip is None:
            raise Cancelled
        self.stage = "score"

        def blocks() -> Iterator[torch.Tensor]:
            size = CHUNK_FRAMES * HOP_SAMPLES
            for start in range(0, len(clip), size):
                engine.heartbeat(self)
                if time.monotonic() > self.deadline:
                    raise DeadlinePassed("the clip could not be scored in time")
                yield torch.from_numpy(clip[start : start + size])

        result = score(engine.bundle, blocks(), context_frames=self.context_frames, window=self.window)
        if not result.finite:
            raise NotFinite
        count_read(engine.metrics, result.nll, len(result.tokens))
        return result


def count_read(metrics: Metrics, nll: float, tokens: int) -> None:
    """Count tokens that were read: of a prompt, or scored."""
    metrics.token_nll.observe(nll)
    metrics.prompt_tokens.inc(tokens)
    metrics.prompt_audio_seconds.inc(tokens * HOP_SAMPLES / SAMPLE_RATE_HZ)
