"""Continuations in slots: the choices of a prompt that has been read, and what they have generated so far."""

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
    ReadPrompt,
)
from app.metrics import Metrics
from model.constants import HOP_SAMPLES
from model.inference.types import Frames, PromptState, RowSnapshot

FIRST_CHUNK_FRAMES = 3  # 40 ms: what a player needs to begin
LONGEST_CHUNK_FRAMES = 24  # 320 ms: chunks grow to this, for fewer bytes of headers and fewer wake-ups
log = logging.getLogger("whispergpt")


class RunningRequest:
    """A continuation whose prompt has been read, and what its ended choices have generated.

    It does not know its running choices: they know it. In a circle of references the prompt's state, 6 MB, would
    outlive its answer until Python's collector comes, hundreds of requests later.
    """

    def __init__(
        self,
        request: ContinueRequest,
        prompt: PromptState | RowSnapshot,
        started: PrefillDone,
        metrics: Metrics,
        ending: threading.Event,
    ) -> None:
        self.request, self.prompt, self.metrics, self.ending = request, prompt, metrics, ending
        self.started = started
        self.since = time.monotonic()  # waiting for slots
        self.turn = 0  # in the order in which slots are given
        self.waited = self.joined = self.first_frame = 0.0
        self._ended: dict[int, FinishedSequence] = {}  # by the choice's index
        self._failed = False
        self._lock = threading.Lock()  # choices of one request may be at different workers

    def sequences(self) -> "list[GeneratedSequence]":
        """Its rows of work, all new."""
        return [GeneratedSequence(self, index) for index in range(self.request.n)]

    def put(self, *events: PrefillDone | AudioChunk | GenerationResult | Failure) -> None:
        if self.request.results is not None:
            self.request.results.put(*events)

    def join(self) -> None:
        """One of its choices gets a slot."""
        with self._lock:
            if not self.joined:
                self.joined = self.request.started = time.monotonic()
                self.request.stage = "step"
                self.waited = self.started.queue_seconds + self.joined - self.since
                self.metrics.queue_seconds.observe(self.waited)

    def cut(self, now: float) -> FinishReason | None:
        """Why it ends now, whatever is left to make; None while nothing is against its going on."""
        if self.ending.is_set():
            return "cancelled"
        return "timeout" if now > self.request.deadline else None

    def frame(self, now: float) -> None:
        """A frame was generated."""
        with self._lock:
            if not self.first_frame:
                self.first_frame = now
                self.metrics.first_audio_seconds.observe(now - self.request.arrived)

    def fail(self, error: BaseException) -> None:
        """Ends all choices: those in slots leave at their next step."""
        with self._lock:
            first, self._failed = not self._failed, True
        self.request.cancelled.set()
        if first:
            if isinstance(error, NotFinite):
                self.metrics.nonfinite.inc()
                log.error("a likelihood or a sample is not finite")
            self.put(Failure(error))

    def close(self, index: int, finished: "FinishedSequence", *events: AudioChunk) -> None:
        """A choice has ended; when all have, the answer is ready."""
        with self._lock:
            self._ended[index] = finished
            done = len(self._ended) == self.request.n and not self._failed
        if not done:
            self.put(*events)
            return
        now = time.monotonic()
        self.request.stage = "done"
        ended = [self._ended[index] for index in range(self.request.n)]
        result = GenerationResult(
            prompt_logprobs=self.started.prompt_logprobs,
            tokens=[one.tokens for one in ended],
            logprobs=[one.logprobs for one in ended],
            samples=[one.samples for one in ended],
            tail=self.started.tail,
            finish_reasons=[one.finish for one in ended],
            queue_seconds=self.waited,
            prefill_seconds=self.started.prefill_seconds,
            first_audio_seconds=self.first_frame - self.request.arrived,
            loop_seconds=now - self.joined,
            ends=[self._end(one.left, one.logprobs) for one in ended if one.left is not None],
        )
        self.metrics.real_time_factor.observe(result.generated_seconds / max(result.loop_seconds, 1e-9))
        self.put(*events, result)

    def _end(self, left: RowSnapshot, logprobs: FloatArray) -> ReadPrompt:
        """Where a choice stands, for others to go on from."""
        return ReadPrompt(left, np.concatenate([self.started.prompt_logprobs, logprobs]), left.tail)


class FinishedSequence(NamedTuple):
    """What an ended choice leaves."""

    tokens: IntArray  # (F,)
    logprobs: FloatArray  # (F,)
    samples: FloatArray  # (320 F,); none when they were streamed
    finish: FinishReason
    left: RowSnapshot | None  # if it is to be kept


class GeneratedSequence:
    """One row of work: the frames of one continuation."""

    def __init__(self, running: RunningRequest, index: int) -> None:
        self.running, self.index = running, index
        frames = running.request.frames
        self.streamed = running.request.streamed
        self.tokens = np.empty(frames, np.int64)
        self.logprobs = np.empty(frames, np.float32)
        # a stream needs no more than the chunk in hand
        self._samples = np.empty((LONGEST_CHUNK_FRAMES if self.streamed else frames, HOP_SAMPLES), np.float32)
        self.generated = self._sent = 0
        self._chunk_frames = FIRST_CHUNK_FRAMES
        self.finish: FinishReason = "length"

    def add(self, frames: Frames, at: int) -> None:
        """Take the frame of row ``at``."""
        position = self.generated - self._sent if self.streamed else self.generated
        self.tokens[self.generated] = frames.codes[at, 0]
        self.logprobs[self.generated] = frames.logprobs[at]
        self._samples[position] = frames.samples[at]
        self.generated += 1

    def over(self, now: float) -> bool:
        """Is it complete, or must it end as it is?"""
        if self.generated == self.running.request.frames:
            return True
        if reason := self.running.cut(now):
            self.finish = reason
        return reason is not None

    def chunk(self, last: bool) -> list[AudioChunk]:
        """What is to be sent now: nothing, or one chunk."""
        ready = self.generated - self._sent
        if not self.streamed or ready == 0 or not (last or ready >= self._chunk_frames):
            return []
        span = slice(self._sent, self.generated)
        samples = self._samples[:ready].reshape(-1).copy()
        chunk = AudioChunk(self.index, self._sent, self.tokens[span].copy(), self.logprobs[span].copy(), samples)
        self._sent = self.generated
        self._chunk_frames = min(2 * self._chunk_frames, LONGEST_CHUNK_FRAMES)
        return [chunk]

    def close(self, *events: AudioChunk, left: RowSnapshot | None) -> None:
        """It has ended, and its row stood so."""
        samples = self._samples[: 0 if self.streamed else self.generated].reshape(-1)
        finished = FinishedSequence(
            self.tokens[: self.generated], self.logprobs[: self.generated], samples, self.finish, left
        )
        self.running.close(self.index, finished, *events)
