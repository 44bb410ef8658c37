"""Continuations in the lanes: the choices of a prompt that has been read, and what they have made so far."""

import logging
import threading
import time
from typing import NamedTuple

import numpy as np

from app.engine.requests import (
    AudioChunk,
    ContinueRequest,
    Failure,
    FinishReason,
    FloatArray,
    GenerationResult,
    IntArray,
    NotFinite,
    PrefillDone,
)
from app.metrics import Metrics
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES
from model.inference.types import Frames, PromptState

FIRST_CHUNK_FRAMES = 3  # 40 ms: what a player needs to begin
LONGEST_CHUNK_FRAMES = 24  # 320 ms: pieces grow to this, for fewer bytes of headers and fewer wake-ups
PLAYBACK_LEAD_SECONDS = 0.5  # of audio that a listener has in hand: who has more can wait for those who have less
log = logging.getLogger("whispergpt")


class RunningRequest:
    """A continuation whose prompt has been read, and what its ended choices have made.

    It does not know its running choices: they know it. In a circle of references the prompt's state, 6 MB, would
    outlive its answer until Python's collector comes, hundreds of requests later.
    """

    def __init__(
        self, job: ContinueRequest, prompt: PromptState, started: PrefillDone, metrics: Metrics, ending: threading.Event
    ) -> None:
        self.job, self.prompt, self.metrics, self.ending = job, prompt, metrics, ending
        self.started = started
        self.since = time.monotonic()  # waiting for slots
        self.waited = self.joined = self.first_frame = 0.0
        self._ended: dict[int, FinishedSequence] = {}  # by the choice's index
        self._failed = False
        self._lock = threading.Lock()  # choices of one job may be in different lanes

    def choices(self) -> "list[GeneratedSequence]":
        """Its rows of work, all new."""
        return [GeneratedSequence(self, index) for index in range(self.job.n)]

    def put(self, *events: PrefillDone | AudioChunk | GenerationResult | Failure) -> None:
        if self.job.ticket is not None:
            self.job.ticket.put(*events)

    def join(self) -> None:
        """One of its choices gets a slot."""
        with self._lock:
            if not self.joined:
                self.joined = self.job.started = time.monotonic()
                self.job.stage = "step"
                self.waited = self.started.queue_seconds + self.joined - self.since
                self.metrics.queue_seconds.observe(self.waited)

    def cut(self, now: float) -> FinishReason | None:
        """Why it ends now, whatever is left to make; None while nothing is against its going on."""
        if self.ending.is_set():
            return "cancelled"
        return "timeout" if now > self.job.deadline else None

    def frame(self, now: float) -> None:
        """A frame was made."""
        with self._lock:
            if not self.first_frame:
                self.first_frame = now
                self.metrics.first_audio_seconds.observe(now - self.job.arrived)

    def fail(self, error: BaseException) -> None:
        """Ends all choices: those in slots leave at their next step."""
        with self._lock:
            first, self._failed = not self._failed, True
        self.job.cancelled.set()
        if first:
            if isinstance(error, NotFinite):
                self.metrics.nonfinite.inc()
                log.error("a likelihood or a sample is not finite")
            self.put(Failure(error))

    def close(self, index: int, made: "FinishedSequence", *events: AudioChunk) -> None:
        """A choice has ended; when all have, the answer is ready."""
        with self._lock:
            self._ended[index] = made
            done = len(self._ended) == self.job.n and not self._failed
        if not done:
            self.put(*events)
            return
        now = time.monotonic()
        self.job.stage = "done"
        ended = [self._ended[index] for index in range(self.job.n)]
        result = GenerationResult(
            prompt_logprobs=self.started.prompt_logprobs,
            tokens=[one.tokens for one in ended],
            logprobs=[one.logprobs for one in ended],
            samples=[one.samples for one in ended],
            tail=self.started.tail,
            finish_reasons=[one.finish for one in ended],
            queue_seconds=self.waited,
            prefill_seconds=self.started.prefill_seconds,
            first_audio_seconds=self.first_frame - self.job.arrived,
            loop_seconds=now - self.joined,
        )
        self.metrics.real_time_factor.observe(result.made_seconds / max(result.loop_seconds, 1e-9))
        self.put(*events, result)


class FinishedSequence(NamedTuple):
    """What an ended choice leaves."""

    tokens: IntArray  # (F,)
    logprobs: FloatArray  # (F,)
    samples: FloatArray  # (320 F,); none when they were streamed
    finish: FinishReason


class GeneratedSequence:
    """One row of work: the frames of one continuation."""

    def __init__(self, seated: RunningRequest, index: int) -> None:
        self.seated, self.index = seated, index
        frames = seated.job.frames
        self.streamed = seated.job.streamed
        self.tokens = np.empty(frames, np.int64)
        self.logprobs = np.empty(frames, np.float32)
        # a stream needs no more than the piece in hand
        self._samples = np.empty((LONGEST_CHUNK_FRAMES if self.streamed else frames, HOP_SAMPLES), np.float32)
        self.made = self._sent = 0
        self._piece = FIRST_CHUNK_FRAMES
        self.finish: FinishReason = "length"

    def add(self, made: Frames, at: int) -> None:
        """Take the frame of row ``at``."""
        place = self.made - self._sent if self.streamed else self.made
        self.tokens[self.made] = made.codes[at, 0]
        self.logprobs[self.made] = made.logprobs[at]
        self._samples[place] = made.samples[at]
        self.made += 1

    def ahead(self, now: float) -> bool:
        """Would somebody who listens since the first frame have audio in hand for a while?"""
        if self.made == 0 or self.seated.cut(now):
            return False
        return self.made / FRAME_RATE_HZ - (now - self.seated.first_frame) > PLAYBACK_LEAD_SECONDS

    def over(self, now: float) -> bool:
        """Is it complete, or must it end as it is?"""
        if self.made == self.seated.job.frames:
            return True
        if reason := self.seated.cut(now):
            self.finish = reason
        return reason is not None

    def piece(self, last: bool) -> list[AudioChunk]:
        """What is to be sent now: nothing, or one piece."""
        ready = self.made - self._sent
        if not self.streamed or ready == 0 or not (last or ready >= self._piece):
            return []
        span = slice(self._sent, self.made)
        samples = self._samples[:ready].reshape(-1).copy()
        piece = AudioChunk(self.index, self._sent, self.tokens[span].copy(), self.logprobs[span].copy(), samples)
        self._sent = self.made
        self._piece = min(2 * self._piece, LONGEST_CHUNK_FRAMES)
        return [piece]

    def close(self, *events: AudioChunk) -> None:
        """It has ended."""
        samples = self._samples[: 0 if self.streamed else self.made].reshape(-1)
        made = FinishedSequence(self.tokens[: self.made], self.logprobs[: self.made], samples, self.finish)
        self.seated.close(self.index, made, *events)
