"""What the engine is asked to do, and what it answers: requests, the events of a stream, results. All plain data."""

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.prefill import PromptReader
from model.inference.sampling import SamplingOptions
from model.inference.scoring import Detail, Window
from model.inference.types import PromptState, RowSnapshot

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Stage = Literal["queue", "prefill", "slot", "step", "score", "done"]


class Cancelled(Exception):
    """Nobody waits for this request any more."""


class NotFinite(Exception):
    """The model gave a likelihood or a sample that is not a number."""


@dataclass(eq=False)
class Model:
    """A bundle that the engine computes with, one of several."""

    bundle: Bundle
    codebooks: int  # of a generated frame
    label: str  # what metrics call it
    batch_invariant: bool = True  # until it has its slots
    nbytes: int = 0  # memory of its weights and of all its slots; these take it only as they are used

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def identity(self) -> str:
        """Tells it from every model whose state it cannot go on from: other weights of the same name, too."""
        return repr((self.name, sorted(self.bundle.hashes.items()), self.codebooks))


@dataclass(frozen=True)
class ReadPrompt:
    """What continuations go on from without reading: a prompt that has been read, or where a continuation ended.

    Requests share it, and none changes it.
    """

    state: PromptState | RowSnapshot
    logprobs: FloatArray  # (T,): of all tokens so far
    tail: FloatArray  # (704,): their last samples, as the codec decodes them

    @property
    def nbytes(self) -> int:
        return self.state.nbytes + self.logprobs.nbytes + self.tail.nbytes


@dataclass(frozen=True)
class PrefillDone:
    """The first event of a streamed continuation: the prompt has been read."""

    prompt_logprobs: FloatArray  # (T,)
    tail: FloatArray  # (704,): the end of the prompt as the codec decodes it
    queue_seconds: float
    prefill_seconds: float


@dataclass(frozen=True)
class AudioChunk:
    """F frames of one choice; the chunks of a choice come in order, and joined they are the whole."""

    choice: int
    first: int  # index of its first frame
    tokens: IntArray  # (F,)
    logprobs: FloatArray  # (F,)
    samples: FloatArray  # (320 F,), before `audio.mixing.limit`


FinishReason = Literal["length", "timeout", "cancelled"]  # cancelled: the server stopped before the end


@dataclass(frozen=True)
class GenerationResult:
    """What a `ContinueRequest` generated. The lists hold an entry a choice, of one length unless time was up."""

    prompt_logprobs: FloatArray  # (T,)
    tokens: list[IntArray]  # (F,) each
    logprobs: list[FloatArray]  # (F,) each
    samples: list[FloatArray]  # (320 F,) each; empty when they were streamed
    tail: FloatArray  # (704,)
    finish_reasons: list[FinishReason]
    queue_seconds: float
    prefill_seconds: float
    first_audio_seconds: float  # from arrival to the first generated frame
    loop_seconds: float  # from the first choice's joining to the last one's end
    ends: list[ReadPrompt] = field(default_factory=list)  # where each choice stands, when that was to be kept

    @property
    def finish_reason(self) -> FinishReason:
        """That of the whole: the worst of its choices'."""
        return next((reason for reason in ("cancelled", "timeout") if reason in self.finish_reasons), "length")

    @property
    def generated_seconds(self) -> float:
        """Audio generated, all choices together."""
        return sum(map(len, self.tokens)) * HOP_SAMPLES / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Failure:
    """The last event of a request that failed."""

    error: BaseException


class ResultQueue:
    """Where a request's events go: a queue of the event loop that waits for them. Any thread may put."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self._closed = False  # of the event loop alone

    def put(self, *events: Any) -> None:
        def deliver() -> None:
            for event in events if not self._closed else ():
                self.events.put_nowait(event)

        with suppress(RuntimeError):  # the event loop has closed: nobody waits
            self.loop.call_soon_threadsafe(deliver)

    def close(self) -> None:
        """Nobody waits any more: what is here, and what still comes, is dropped.

        Kept, a failure would go in a circle, and with it all that its traceback holds: the error, the frame of the
        thread that met it, the request, this queue.
        """
        self._closed = True
        self.events = asyncio.Queue()


@dataclass
class EngineRequest:
    """Work for the engine. Times are `time.monotonic` seconds.

    The caller gives what the constructor takes; the rest is where the request stands, and the engine keeps it.
    """

    part: ClassVar[bool] = False  # of something longer: how long it took tells nothing of requests
    arrived: float
    deadline: float
    samples: FloatArray | None  # (N,) at 24 kHz; None as soon as nobody needs them
    model: Model | None = field(default=None, kw_only=True)  # by default the engine's first; None when nobody needs it
    cancelled: threading.Event = field(default_factory=threading.Event, init=False)
    submitted: float = field(default=0.0, init=False)
    read_began: float = field(default=0.0, init=False)  # its prompt: when, and until when
    read_ended: float = field(default=0.0, init=False)
    ended: float = field(default=0.0, init=False)  # it has its answer, or nobody waits for one
    started: float = field(default=0.0, init=False)  # it computes what it was asked for; until then it waits
    stage: Stage = field(default="queue", init=False)
    streamed: bool = field(default=False, init=False)
    results: ResultQueue | None = field(default=None, init=False)
    begun: bool = field(default=False, init=False)  # a thread has it, or had it
    within_session: bool = field(default=False, init=False)  # which has a permit; the request has none of its own

    def forget(self) -> None:
        """Nobody waits: lets go of what is large. The request may still stand in a queue."""
        self.samples = self.model = None


@dataclass
class ContinueRequest(EngineRequest):
    """Continue a prompt. Answered with a `GenerationResult`, TooShortError, or DeadlinePassed when nothing is ready."""

    frames: int
    options: SamplingOptions
    n: int
    read: ReadPrompt | None = None  # instead of samples: go on from here
    keep: bool = False  # the result tells where its choices ended, to go on from

    def forget(self) -> None:
        super().forget()
        self.read = None


@dataclass
class PromptRequest(EngineRequest):
    """Read a prompt, for continuations to come. Answered with a `ReadPrompt` or TooShortError."""


@dataclass(frozen=True)
class Listened:
    """A part of a prompt that comes in parts has been read."""

    reader: PromptReader  # for the next one
    tokens: IntArray  # (F,)
    logprobs: FloatArray  # (F,)
    prompt: ReadPrompt | None  # the whole, after the last part


@dataclass
class ListenRequest(EngineRequest):
    """Read a part of a prompt: (320 F,) samples. Answered with `Listened` or TooShortError.

    ``reader``: what the part before left; None for the first one, which has at least ``MIN_FRAMES`` frames.
    """

    part = True
    reader: PromptReader | None
    last: bool
    within_session: bool = field(default=True, init=False)

    def forget(self) -> None:
        super().forget()
        self.reader = None


@dataclass
class ScoreRequest(EngineRequest):
    """Score one clip. Answered with a `Score`, TooShortError or WindowError."""

    context_frames: int
    window: Window | None = None
    detail: Detail | None = None
