"""The engine: one thread owns the model and works off a bounded queue.

The event loop never computes: it reserves a place, submits a job and awaits a future. A job sees a cancellation within
one frame (or one chunk of scored audio). This is the seam for continuous batching: `reserve`, `submit`, `Job`.
"""

import asyncio
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from app.errors import DeadlinePassed, Draining, NotReady, Overloaded
from app.metrics import Metrics
from model.bundle import Bundle
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, SAMPLE_RATE_HZ
from model.generate import generate, prefill
from model.sampling import SamplingOptions
from model.score import CHUNK_FRAMES, Score, score

HEARTBEAT_SECONDS = 1.0
STALE_SECONDS = 30.0  # a heartbeat older than this means a stuck engine: one chunk of scoring takes far less
log = logging.getLogger("whispergpt")


class Cancelled(Exception):
    """Nobody waits for this job any more."""


class NotFinite(Exception):
    """The model gave a likelihood that is not a number."""


@dataclass
class Job(ABC):
    """Work for the engine. Times are `time.monotonic` seconds."""

    arrived: float
    deadline: float
    cancelled: threading.Event = field(default_factory=threading.Event, init=False)
    submitted: float = field(default=0.0, init=False)
    started: float = field(default=0.0, init=False)

    @abstractmethod
    def run(self, engine: "Engine") -> Any:
        """Runs on the engine's thread; calls ``engine.beat(self)`` at least once a chunk."""


@dataclass
class Continuation:
    """What a `ContinueJob` made: arrays of n choices."""

    prompt_logprobs: np.ndarray  # (T,)
    tokens: np.ndarray  # (n, F) int64
    logprobs: np.ndarray  # (n, F) float32
    samples: np.ndarray  # (n, 320 F) float32
    tail: np.ndarray  # (704,): the end of the prompt as the codec decodes it
    finish_reason: Literal["length", "timeout"]
    queue_seconds: float
    prefill_seconds: float
    first_audio_seconds: float
    loop_seconds: float


@dataclass
class ContinueJob(Job):
    """Continue a prompt, (N,) samples at 24 kHz. Raises TooShortError, or DeadlinePassed when nothing is ready."""

    prompt: np.ndarray
    frames: int
    options: SamplingOptions
    n: int

    def _go_on(self, engine: "Engine") -> None:
        engine.beat(self)
        if time.monotonic() > self.deadline:
            raise DeadlinePassed("the prompt could not be read in time")

    def run(self, engine: "Engine") -> Continuation:
        bundle, metrics = engine.bundle, engine.metrics
        begin = time.monotonic()
        prompt = prefill(bundle, torch.from_numpy(self.prompt), between=lambda: self._go_on(engine))
        prefilled = time.monotonic()
        metrics.prefill_seconds.observe(prefilled - begin)
        made = []
        first = 0.0
        finish: Literal["length", "timeout"] = "length"
        before = prefilled
        for frame in generate(bundle, prompt, frames=self.frames, options=self.options, n=self.n):
            made.append(frame)
            now = time.monotonic()
            metrics.step_seconds.observe(now - before)
            before = now
            first = first or now
            engine.beat(self)
            if now > self.deadline:
                finish = "timeout"
                break
        ended = time.monotonic()
        metrics.first_audio_seconds.observe(first - self.arrived)
        result = Continuation(
            prompt_logprobs=prompt.logprobs.cpu().numpy(),
            tokens=torch.stack([frame.codes[:, 0] for frame in made], 1).cpu().numpy(),
            logprobs=torch.stack([frame.logprobs for frame in made], 1).cpu().numpy(),
            samples=torch.cat([frame.samples for frame in made], 1).cpu().numpy(),
            tail=prompt.tail[0, -MEL_LEFT_SAMPLES:].cpu().numpy(),
            finish_reason=finish,
            queue_seconds=self.started - self.submitted,
            prefill_seconds=prefilled - begin,
            first_audio_seconds=first - self.arrived,
            loop_seconds=ended - prefilled,
        )
        if not (
            np.isfinite(result.prompt_logprobs).all()
            and np.isfinite(result.logprobs).all()
            and np.isfinite(result.samples).all()
        ):
            raise NotFinite
        seconds = result.samples.size / SAMPLE_RATE_HZ
        metrics.real_time_factor.observe(seconds / max(result.loop_seconds, 1e-9))
        metrics.generated_audio_seconds.inc(seconds)
        metrics.generated_tokens.inc(result.tokens.size)
        _count_read(metrics, prompt.nll, len(prompt.tokens))
        return result


@dataclass
class ScoreJob(Job):
    """Score one clip, (N,) samples at 24 kHz. Raises TooShortError."""

    clip: np.ndarray
    context_frames: int

    def run(self, engine: "Engine") -> Score:
        def blocks() -> Iterator[torch.Tensor]:
            size = CHUNK_FRAMES * HOP_SAMPLES
            for start in range(0, len(self.clip), size):
                engine.beat(self)
                if time.monotonic() > self.deadline:
                    raise DeadlinePassed("the clip could not be scored in time")
                yield torch.from_numpy(self.clip[start : start + size])

        result = score(engine.bundle, blocks(), context_frames=self.context_frames)
        if not torch.isfinite(result.logprobs).all():
            raise NotFinite
        _count_read(engine.metrics, result.nll, len(result.tokens))
        return result


def _count_read(metrics: Metrics, nll: float, tokens: int) -> None:
    metrics.token_nll.observe(nll)
    metrics.prompt_tokens.inc(tokens)
    metrics.prompt_audio_seconds.inc(tokens * HOP_SAMPLES / SAMPLE_RATE_HZ)


@dataclass
class _Submitted:
    job: Job | None
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop


class Engine:
    """One worker thread, ``slots + waiting`` places for requests."""

    def __init__(self, bundle: Bundle, metrics: Metrics, waiting: int, threads: int) -> None:
        self.bundle, self.metrics = bundle, metrics
        self.places, self.taken = 1 + waiting, 0  # of the event loop alone: no lock
        self.threads = threads
        self.draining = False
        self.empty = asyncio.Event()  # no request is inside
        self.empty.set()
        self._queue: queue.SimpleQueue[_Submitted | None] = queue.SimpleQueue()
        self._heartbeat = 0.0
        self._computing = 0  # jobs in hand: 0 or 1
        self._recent_seconds = 1.0  # what a request took of late, for Retry-After
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        metrics.slots_total.set(1)

    def start(self) -> None:
        self._heartbeat = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the job in hand."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def healthy(self) -> bool:
        """The thread lives and its heartbeat is fresh."""
        return self._thread.is_alive() and time.monotonic() - self._heartbeat < STALE_SECONDS

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """A place for a request, from before its body is read until its answer is made.

        Raises Overloaded, Draining or NotReady.
        """
        if self.draining:
            self.metrics.rejected.labels("draining").inc()
            raise Draining("the server is shutting down", headers={"retry-after": "5"})
        if not self.healthy:
            self.metrics.rejected.labels("not_ready").inc()
            raise NotReady("the engine does not answer", headers={"retry-after": "5"})
        if self.taken >= self.places:
            self.metrics.rejected.labels("overloaded").inc()
            wait = max(1, round(self._recent_seconds * self.taken))
            raise Overloaded(f"all {self.places} places are taken", headers={"retry-after": str(min(wait, 120))})
        self.taken += 1
        self.empty.clear()
        self._gauge()
        try:
            yield
        finally:
            self.taken -= 1
            if not self.taken:
                self.empty.set()
            self._gauge()

    def _gauge(self) -> None:
        self.metrics.running.set(self._computing)
        self.metrics.slots_used.set(self._computing)
        self.metrics.waiting.set(max(self.taken - self._computing, 0))

    async def submit(self, job: Job) -> Any:
        """Run a job; returns its result or raises its exception. When the caller is cancelled, so is the job.

        Raises DeadlinePassed when the job's turn did not come in time (one that runs ends itself at its deadline, with
        what is ready), and NotReady when the engine's thread has died or is stuck.
        """
        loop = asyncio.get_running_loop()
        submitted = _Submitted(job, loop.create_future(), loop)
        job.submitted = time.monotonic()
        self._queue.put(submitted)
        try:
            while not submitted.future.done():
                left = job.deadline - time.monotonic()
                if job.started == 0.0 and left <= 0.0:
                    raise DeadlinePassed("the request waited for its turn until its time was up")
                if not self.healthy:
                    raise NotReady("the engine does not answer", headers={"retry-after": "5"})
                pause = HEARTBEAT_SECONDS if job.started else min(left, HEARTBEAT_SECONDS)
                await asyncio.wait([submitted.future], timeout=pause)
            return submitted.future.result()
        finally:
            if not submitted.future.done() or submitted.future.cancelled():
                job.cancelled.set()
                submitted.job = None  # it stays in the queue until its turn, and must not keep its audio alive

    def beat(self, job: Job) -> None:
        """Called by a running job: shows life, and ends the job when nobody waits for it. Raises Cancelled."""
        self._heartbeat = time.monotonic()
        if job.cancelled.is_set():
            raise Cancelled

    def _work(self) -> None:
        torch.set_num_threads(self.threads)
        while True:
            self._heartbeat = time.monotonic()
            try:
                submitted = self._queue.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                continue
            if submitted is None:
                return
            self._run(submitted)

    def _run(self, submitted: _Submitted) -> None:
        job = submitted.job
        if job is None or job.cancelled.is_set():
            return
        job.started = time.monotonic()
        self.metrics.queue_seconds.observe(job.started - job.submitted)
        self._computing = 1
        self._gauge()
        result: Any = None
        error: BaseException | None = None
        try:
            result = job.run(self)
        except NotFinite as caught:
            self.metrics.nonfinite.inc()
            log.error("a likelihood or a sample is not finite")
            error = caught
        except BaseException as caught:  # the caller's to handle; this thread lives on, whatever it was
            error = caught
        finally:
            self._computing = 0
            self._gauge()
        self._recent_seconds = 0.8 * self._recent_seconds + 0.2 * (time.monotonic() - job.started)
        try:
            submitted.loop.call_soon_threadsafe(_settle, submitted.future, result, error)
        except RuntimeError:
            log.debug("the event loop has closed; a result is dropped")


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # seen: a caller that left does not make asyncio warn
