"""The threads that read: prompts, which then wait for slots, and clips to score, at a lower priority."""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from traceback import clear_frames
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from app.engine import health
from app.engine.admission import Admission
from app.engine.requests import (
    Cancelled,
    ContinueRequest,
    EngineRequest,
    Failure,
    FloatArray,
    Listened,
    ListenRequest,
    Model,
    NotFinite,
    PromptRequest,
    ReadPrompt,
    ScoreRequest,
)
from app.engine.worker import DecodeWorkers
from app.errors import DeadlinePassed, Draining
from app.metrics import Metrics
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, SAMPLE_RATE_HZ
from model.inference import cuda
from model.inference.prefill import PromptReader, prefill
from model.inference.scoring import CHUNK_FRAMES, MIN_FRAMES, Score, TooShortError, score
from model.inference.types import PromptState

Kind = Literal["read", "listen", "score"]
# of the threads that read prompts, so that those who listen already hear no gap; and of those that score clips
NICENESS: dict[Kind, int] = {"read": 5, "listen": 5, "score": 10}
log = logging.getLogger("whispergpt")


def model_of(request: EngineRequest) -> Model:
    """The model that a request is for. Raises Cancelled when nobody waits for it any more."""
    if request.model is None:
        raise Cancelled
    return request.model


class Work(NamedTuple):
    """What is done with a request of some type, and by which threads."""

    kind: Kind
    run: Callable[[Any], Any]
    answers: bool = True  # `run` returns the answer; otherwise others go on with the request


class PrefillPool:
    """Threads that read, ``threads`` of each kind, and their queues.

    Args:
        device: where the models are.
        threads: of each kind.
        metrics: where to count.
        admission: told which requests are taken up.
        heartbeats: of the threads, among others.
        workers_of: tells whose decode workers get a prompt of a model that has been read.
        ending: set when the server stops.
        died: called by a thread that cannot go on, with the reason.
    """

    def __init__(
        self,
        device: torch.device,
        threads: int,
        metrics: Metrics,
        admission: Admission,
        heartbeats: health.Heartbeats,
        workers_of: Callable[[Model], DecodeWorkers],
        ending: threading.Event,
        died: Callable[[str], None],
    ) -> None:
        self._device, self._metrics, self._ending = device, metrics, ending
        self._admission, self._heartbeats, self._workers_of = admission, heartbeats, workers_of
        self.work: dict[type[EngineRequest], Work] = {
            ContinueRequest: Work("read", self.read_prompt, answers=False),
            PromptRequest: Work("read", self.read_to_keep),
            ListenRequest: Work("listen", self.listen),
            ScoreRequest: Work("score", self.score_clip),
        }
        # not SimpleQueue: where two threads wait with a timeout, CPython's may let one wait for ever (seen with 3.11.7)
        self.queues: dict[Kind, queue.Queue[EngineRequest | None]] = {kind: queue.Queue() for kind in NICENESS}
        self._reading = 0  # prompts that a thread reads
        self._lock = threading.Lock()  # of that count
        self.threads = [
            threading.Thread(target=health.guarded(self._work, died), args=(kind,), name=f"{kind}-{index}", daemon=True)
            for kind in self.queues
            for index in range(threads)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads after the chunk in hand."""
        for one in self.queues.values():
            for _ in self.threads:
                one.put(None)

    def put(self, request: EngineRequest) -> None:
        """The request waits for its turn from now on."""
        self.queues[self.work[type(request)].kind].put(request)

    @property
    def reads_prompts(self) -> bool:
        """Is a prompt being read, or waiting for it?"""
        return self._reading > 0 or not self.queues["read"].empty()

    def go_on(self, request: EngineRequest, late: str = "the request could not be served in time") -> None:
        """Between two chunks: shows life, and ends the request when nobody waits for it, or can.

        Raises Cancelled, Draining or DeadlinePassed.
        """
        self._heartbeats.heartbeat()
        if request.cancelled.is_set():
            raise Cancelled
        if self._ending.is_set():
            raise Draining("the server is shutting down")
        if time.monotonic() > request.deadline:
            raise DeadlinePassed(late)

    def read_prompt(self, request: ContinueRequest) -> None:
        """Reads a prompt and queues it for the workers. Raises what `_read` raises."""
        model = model_of(request)
        prompt = self._read(request, model)
        took = request.read_ended - request.read_began
        request.stage = "slot"  # before it is told that the prompt has been read: who leaves then waits for a slot
        self._metrics.prefill_seconds.observe(took)
        self._workers_of(model).put(request, prompt, request.read_began - request.submitted, took)

    def read_to_keep(self, request: PromptRequest) -> ReadPrompt:
        """Reads a prompt for later requests. Raises what `_read` raises."""
        prompt = self._read(request, model_of(request))
        self._metrics.prefill_seconds.observe(request.read_ended - request.read_began)
        return prompt

    def _read(self, request: EngineRequest, model: Model) -> ReadPrompt:
        """Reads a prompt. Raises what `go_on` raises, TooShortError or NotFinite."""
        samples = request.samples
        if samples is None:
            raise Cancelled
        request.stage = "prefill"
        request.read_began = time.monotonic()
        prompt = prefill(
            model.bundle,
            torch.from_numpy(samples),
            codebooks=model.codebooks,
            between=lambda: self.go_on(request, "the prompt could not be read in time"),
        )
        request.read_ended = time.monotonic()
        return self._whole(prompt, model)

    def _whole(self, prompt: PromptState, model: Model) -> ReadPrompt:
        """A prompt that has been read. Raises NotFinite."""
        logprobs = prompt.logprobs.cpu().numpy()
        if not np.isfinite(logprobs).all():
            raise NotFinite
        self._count(model, prompt.nll, len(prompt.tokens))
        return ReadPrompt(prompt, logprobs, prompt.tail[0, -MEL_LEFT_SAMPLES:].cpu().numpy())

    def listen(self, request: ListenRequest) -> Listened:
        """Reads a part of a prompt: threads of their own do, since somebody speaks and waits behind no other's minute.

        Raises what `go_on` raises, TooShortError or NotFinite.
        """
        self.go_on(request, "the audio could not be read in time")
        samples, model = request.samples, model_of(request)
        if samples is None:
            raise Cancelled
        request.stage = "prefill"
        if request.reader is None and len(samples) < MIN_FRAMES * HOP_SAMPLES:
            raise TooShortError(f"a prompt begins with {MIN_FRAMES} frames or more")
        reader = request.reader or PromptReader(model.bundle, model.codebooks)
        read = reader.read(torch.from_numpy(samples))
        logprobs = read.logprobs[0].cpu().numpy()
        prompt = self._whole(reader.state(), model) if request.last else None
        if not np.isfinite(logprobs).all():
            raise NotFinite
        return Listened(reader, read.codes[0, 0].cpu().numpy(), logprobs, prompt)

    def score_clip(self, request: ScoreRequest) -> Score:
        """Scores a clip. Raises what `go_on` raises, TooShortError, WindowError or NotFinite."""
        clip, model = request.samples, model_of(request)
        if clip is None:
            raise Cancelled
        request.stage = "score"
        blocks = self._blocks(request, clip)
        scored = score(
            model.bundle, blocks, context_frames=request.context_frames, window=request.window, detail=request.detail
        )
        if not scored.finite:
            raise NotFinite
        self._count(model, scored.nll, len(scored.tokens))
        return scored

    def _blocks(self, request: ScoreRequest, clip: FloatArray) -> Iterator[torch.Tensor]:
        """A clip in blocks of the size that `score` computes with.

        No closure over the clip: that would outlive `clear_frames`, by the function of the frame that is cleared.
        """
        size = CHUNK_FRAMES * HOP_SAMPLES
        for start in range(0, len(clip), size):
            self.go_on(request, "the clip could not be scored in time")
            yield torch.from_numpy(clip[start : start + size])

    def _count(self, model: Model, nll: float, tokens: int) -> None:
        """Tokens that were read: of a prompt, or scored."""
        self._metrics.token_nll.observe(nll)
        self._metrics.prompt_tokens.inc(tokens)
        self._metrics.model_prompt_tokens.labels(model.label).inc(tokens)
        self._metrics.prompt_audio_seconds.inc(tokens * HOP_SAMPLES / SAMPLE_RATE_HZ)

    def _work(self, kind: Kind) -> None:
        torch.set_num_threads(1)  # a thread a core does it: the matrices are small, and two threads a product wait
        if sys.platform == "linux":  # of this thread alone; elsewhere it would be the process's, or another's
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS[kind])
        while True:
            self._heartbeats.heartbeat()
            try:
                request = self.queues[kind].get(timeout=health.HEARTBEAT_SECONDS)
            except queue.Empty:
                continue
            if request is None:
                return
            with cuda.on(self._device):
                self._run(request)
            del request  # or it would hold its audio until the next one comes

    @contextmanager
    def _counted(self, kind: Kind) -> Iterator[None]:
        with self._lock:
            self._reading += kind == "read"
        try:
            yield
        finally:
            with self._lock:
                self._reading -= kind == "read"

    def _run(self, request: EngineRequest) -> None:
        if not self._admission.begin(request):
            return
        work, results = self.work[type(request)], request.results
        assert results is not None
        if work.answers:
            request.started = time.monotonic()
        if work.answers and not request.part:
            self._metrics.queue_seconds.observe(request.started - request.submitted)
        try:
            with self._counted(work.kind):
                answer = work.run(request)
        except NotFinite as error:
            self._metrics.nonfinite.inc()
            log.error("a likelihood or a sample is not finite")
            results.put(Failure(error))
        except BaseException as error:  # the caller's to handle; this thread lives on, whatever it was
            clear_frames(error.__traceback__)  # they hold what was read so far, and the caller may keep the error
            results.put(Failure(error))
        else:
            if work.answers:
                results.put(answer)
