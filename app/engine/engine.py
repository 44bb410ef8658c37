"""The engine: it admits requests, reads prompts, scores clips and steps continuations, each on threads of its own.

The event loop never computes: it reserves a place, submits a job and awaits its events. Prompts are read on one set of
threads, clips are scored on another of lower priority, and the lanes step (`app.engine.worker`): a long prompt or a
long clip does not hold up the continuations under way. A job sees a cancellation within one step, or one chunk of
reading.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from traceback import clear_frames
from typing import Any

import torch

from app.engine.requests import (
    AudioChunk,
    Cancelled,
    ContinueRequest,
    EngineRequest,
    Failure,
    GenerationResult,
    NotFinite,
    PrefillDone,
    ResultQueue,
)
from app.engine.sequence import RunningRequest
from app.engine.worker import DecodeWorkers
from app.errors import DeadlinePassed, Draining, NotReady, Overloaded
from app.metrics import Metrics
from model.checkpoint import Bundle
from model.inference.backend import backend_for, default_slots, workers_for
from model.inference.invariance import keeps_rows_apart
from model.inference.types import PromptState

HEARTBEAT_SECONDS = 1.0
STALE_SECONDS = 30.0  # a heartbeat older than this means a stuck engine: one chunk of scoring takes far less
# of the threads that read prompts, so that those who listen already hear no gap; and of those that score clips
NICENESS = {"read": 5, "score": 10}
log = logging.getLogger("whispergpt")


class Engine:
    """Threads over one bundle, and ``slots + waiting`` places for requests.

    Args:
        bundle: the model.
        metrics: where to count.
        waiting: requests that may wait beside those that have slots.
        threads: of each kind: lanes, threads that read prompts, threads that score.
        slots: rows of all lanes together; by default what suits the device.
        codebooks: codes of a made frame; the codec's number by default.
    """

    def __init__(
        self,
        bundle: Bundle,
        metrics: Metrics,
        waiting: int,
        threads: int,
        slots: int | None = None,
        codebooks: int | None = None,
    ) -> None:
        self.bundle, self.metrics = bundle, metrics
        self.codebooks = codebooks or bundle.codec.config.codebooks
        slots = slots or default_slots(bundle)
        count = min(workers_for(bundle, threads), slots)
        self.lanes = DecodeWorkers(
            lambda rows: backend_for(bundle, rows, self.codebooks),
            count,
            -(-slots // count),
            1,
            metrics,
            self._alive,
            self._reads,
            lambda slots: keeps_rows_apart(bundle, slots),
        )
        self.batch_invariant = True  # until `start` knows
        self.places, self.taken = self.lanes.total + waiting, 0  # of the event loop alone: no lock
        self.admitted = 0  # requests, so far
        self.draining = False
        self.empty = asyncio.Event()  # no request is inside
        self.empty.set()
        # not SimpleQueue: where two threads wait with a timeout, CPython's may let one wait for ever (seen with 3.11.7)
        self._queues: dict[str, queue.Queue[EngineRequest | None]] = {"read": queue.Queue(), "score": queue.Queue()}
        self._beats: dict[int, float] = {}  # of each thread
        self._computing = 0  # jobs that a thread has begun and that have not ended
        self._reading = 0  # prompts that a thread reads
        self._lock = threading.Lock()  # of the count, and of each job's `begun`
        self._recent_seconds = 1.0  # what a request took of late, for Retry-After
        self._threads = self.lanes.threads + [
            threading.Thread(target=self._work, args=(kind,), name=f"{kind}-{index}", daemon=True)
            for kind in self._queues
            for index in range(threads)
        ]

    def start(self) -> None:
        """Starts the threads. Not for the event loop: the first start on a machine compiles for a minute."""
        self.batch_invariant = self.lanes.start()
        self.metrics.batch_invariant.set(self.batch_invariant)
        if not self.batch_invariant:
            log.warning("on this machine a request's bits may depend on the requests beside it (docs/engine.md)")
        for thread in self._threads:
            if thread not in self.lanes.threads:
                thread.start()
        now = time.monotonic()
        for thread in self._threads:
            self._beats[thread.ident or 0] = now

    def stop(self) -> None:
        """Ends the threads after the chunk or step in hand."""
        self.lanes.stop()
        for one in self._queues.values():
            for _ in self._threads:
                one.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=10)

    def end(self) -> None:
        """The shutdown waits no longer: continuations return what they have, `cancelled`; all else gets Draining."""
        self.draining = True
        self.lanes.end()

    @property
    def healthy(self) -> bool:
        """The threads live, and their heartbeats are fresh."""
        now = time.monotonic()
        return all(t.is_alive() and now - self._beats.get(t.ident or 0, 0.0) < STALE_SECONDS for t in self._threads)

    def _reads(self) -> bool:
        """Is a prompt being read, or waiting for it?"""
        return self._reading > 0 or not self._queues["read"].empty()

    def _alive(self) -> None:
        self._beats[threading.get_ident()] = time.monotonic()

    def heartbeat(self, job: EngineRequest) -> None:
        """Called by a job that reads or scores: shows life, and ends the job when nobody waits for it, or can.

        Raises Cancelled or Draining.
        """
        self._alive()
        if job.cancelled.is_set():
            raise Cancelled
        if self.lanes.ending.is_set():
            raise Draining("the server is shutting down")

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
            wait = max(1, round(self._recent_seconds * self.taken / self.lanes.total))
            raise Overloaded(f"all {self.places} places are taken", headers={"retry-after": str(min(wait, 120))})
        self.taken += 1
        self.admitted += 1
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
        with self._lock:  # or a thread could write what was true before
            self.metrics.running.set(self._computing)
            self.metrics.waiting.set(max(self.taken - self._computing, 0))

    async def submit(self, job: EngineRequest) -> Any:
        """Run a job; returns its result or raises its exception. When the caller is cancelled, so is the job.

        Raises DeadlinePassed when the job's turn did not come in time (one that runs ends itself at its deadline, with
        what is ready), and NotReady when a thread has died or is stuck.
        """
        result = None
        async for event in self._events(job):
            if not isinstance(event, PrefillDone):
                result = event
        return result

    async def stream(self, job: ContinueRequest) -> AsyncGenerator[PrefillDone | AudioChunk | GenerationResult, None]:
        """The events of a continuation: `PrefillDone`, then each `AudioChunk`, and last the `GenerationResult` without
        samples.

        Closing the generator cancels the job. Raises what `submit` raises.
        """
        job.streamed = True
        events = self._events(job)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def _events(self, job: EngineRequest) -> AsyncGenerator[Any, None]:
        """What the job has to say, up to its result."""
        ticket = job.ticket = ResultQueue()
        job.submitted = time.monotonic()
        self._queues[job.kind].put(job)
        done = False
        try:
            while not done:
                event = await self._next(job, ticket)
                if isinstance(event, Failure):
                    raise event.error
                done = not isinstance(event, PrefillDone | AudioChunk)
                yield event
        finally:
            with self._lock:
                if not done:
                    job.cancelled.set()
                self._computing -= job.begun
            if not done:
                job.forget()
                self.lanes.wake()
            elif job.started:
                self._recent_seconds = 0.8 * self._recent_seconds + 0.2 * (time.monotonic() - job.started)
            self._gauge()

    async def _next(self, job: EngineRequest, ticket: ResultQueue) -> Any:
        """The job's next event. Raises DeadlinePassed or NotReady when it cannot come."""
        while True:
            with suppress(asyncio.QueueEmpty):
                return ticket.events.get_nowait()
            left = job.deadline - time.monotonic()
            if job.started == 0.0 and left <= 0.0:
                raise DeadlinePassed("the request waited for its turn until its time was up")
            if not self.healthy:
                raise NotReady("the engine does not answer", headers={"retry-after": "5"})
            pause = HEARTBEAT_SECONDS if job.started else min(left, HEARTBEAT_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    return await ticket.events.get()

    def start_sequences(self, job: ContinueRequest, prompt: PromptState, started: PrefillDone) -> None:
        """A prompt has been read: its choices wait for slots."""
        seated = RunningRequest(job, prompt, started, self.metrics, self.lanes.ending)
        if job.streamed:
            seated.put(started)
        self.lanes.put(seated)

    def _work(self, kind: str) -> None:
        torch.set_num_threads(1)  # a thread a core does it: the matrices are small, and two threads a product wait
        with suppress(OSError, AttributeError):  # of this thread alone; not everywhere
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS[kind])
        while True:
            self._alive()
            try:
                job = self._queues[kind].get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                continue
            if job is None:
                return
            self._run(job)
            del job  # or it would hold its audio until the next one comes

    @contextmanager
    def _counted(self, job: EngineRequest) -> Iterator[None]:
        with self._lock:
            self._reading += job.kind == "read"
        try:
            yield
        finally:
            with self._lock:
                self._reading -= job.kind == "read"

    def _run(self, job: EngineRequest) -> None:
        with self._lock:
            if job.cancelled.is_set():
                return
            job.begun = True
            self._computing += 1
        self._gauge()
        assert job.ticket is not None
        if job.starts_at_once:
            job.started = time.monotonic()
            self.metrics.queue_seconds.observe(job.started - job.submitted)
        try:
            with self._counted(job):
                result = job.run(self)
        except NotFinite as error:
            self.metrics.nonfinite.inc()
            log.error("a likelihood or a sample is not finite")
            job.ticket.put(Failure(error))
        except BaseException as error:  # the caller's to handle; this thread lives on, whatever it was
            clear_frames(error.__traceback__)  # they hold what was read so far, and the error goes round in circles
            job.ticket.put(Failure(error))
        else:
            if job.starts_at_once:
                job.ticket.put(result)
