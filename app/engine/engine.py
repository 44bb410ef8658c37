"""The engine: it admits requests, reads prompts, scores clips and steps continuations, each on threads of its own.

The event loop never computes: it acquires a permit, submits a request and awaits its events. Prompts are read on one
set of threads, clips are scored on another of lower priority (`app.engine.prefill_pool`), and the decode workers step
(`app.engine.worker`): a long prompt or a long clip does not hold up the continuations under way. A request sees a
cancellation within one step, or one chunk of reading.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

from app.engine import health
from app.engine.admission import SOON, Admission
from app.engine.prefill_pool import PrefillPool
from app.engine.requests import (
    AudioChunk,
    ContinueRequest,
    EngineRequest,
    Failure,
    GenerationResult,
    PrefillDone,
    ResultQueue,
)
from app.engine.worker import DecodeWorkers
from app.errors import DeadlinePassed, NotReady
from app.metrics import Metrics
from model.checkpoint import Bundle
from model.inference.backend import backend_for, default_slots, workers_for
from model.inference.invariance import keeps_rows_apart

LAST_WORDS_SECONDS = 5.0  # for requests inside to be answered when inference is dead
log = logging.getLogger("whispergpt")


class Engine:
    """Threads over one bundle, and ``slots + waiting`` permits for requests.

    Args:
        bundle: the model.
        metrics: where to count.
        waiting: requests that may wait beside those that have slots.
        threads: of each kind: decode workers, threads that read prompts, threads that score.
        slots: rows of all decode workers together; by default what suits the device.
        codebooks: codes of a generated frame; the codec's number by default.
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
        self.batch_invariant = True  # until `start` knows
        slots = slots or default_slots(bundle)
        count = min(workers_for(bundle, threads), slots)
        self._heartbeats = health.Heartbeats()
        self._stopping = self._dead = False
        self._dying = threading.Lock()  # whoever has it tells that inference is dead
        self.workers = DecodeWorkers(
            lambda rows: backend_for(bundle, rows, self.codebooks),
            count,
            -(-slots // count),
            1,
            metrics,
            self._heartbeats.heartbeat,
            lambda: self.prefill_pool.reads_prompts,
            lambda slots: keeps_rows_apart(bundle, slots),
            self._died,
        )
        total = self.workers.total
        self.admission = Admission(total + waiting, total, metrics, lambda: self.healthy)
        self.prefill_pool = PrefillPool(
            bundle,
            self.codebooks,
            threads,
            metrics,
            self.admission,
            self._heartbeats,
            self.workers,
            self._died,
        )

    def start(self) -> None:
        """Starts the threads. Not for the event loop: the first start on a machine compiles for a minute."""
        self.batch_invariant = self.workers.start()
        self.metrics.batch_invariant.set(self.batch_invariant)
        if not self.batch_invariant:
            log.warning("on this machine a request's bits may depend on the requests beside it (docs/engine.md)")
        self.prefill_pool.start()
        self._heartbeats.watch([*self.workers.threads, *self.prefill_pool.threads])

    def stop(self) -> None:
        """Ends the threads after the chunk or step in hand."""
        self._stopping = True
        self.workers.stop()
        self.prefill_pool.stop()
        for thread in (*self.workers.threads, *self.prefill_pool.threads):
            if thread.is_alive():
                thread.join(timeout=10)

    def end(self) -> None:
        """The shutdown waits no longer: continuations return what they have, `cancelled`; all else gets Draining."""
        self.draining = True
        self.workers.end()

    @property
    def healthy(self) -> bool:
        """The threads live, their heartbeats are fresh, and a worker has slots."""
        return self._heartbeats.fresh and self.workers.serving and not self._dead

    @property
    def alive(self) -> bool:
        """Can it serve, or will it? Otherwise a new process is the only remedy."""
        return self._stopping or not (self._dead or self._heartbeats.lost)

    def _died(self, reason: str) -> None:
        """A thread cannot go on: ends the process, after a moment for what others can still tell their clients.

        A server without inference that goes on listening is worse than none: nothing would start another.
        """
        if not self._dying.acquire(blocking=False):
            return
        self._dead = True
        log.critical("inference is dead (%s): the process ends with exit code %d", reason, health.EXIT_DEAD)
        self.end()
        end = time.monotonic() + LAST_WORDS_SECONDS
        while self.in_use and time.monotonic() < end:
            time.sleep(0.05)
        health.end_process()

    @property
    def draining(self) -> bool:
        """No more requests are admitted."""
        return self.admission.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self.admission.draining = value

    @property
    def in_use(self) -> int:
        """Permits in use: requests that are inside."""
        return self.admission.in_use

    @property
    def admitted(self) -> int:
        """Requests that were admitted so far."""
        return self.admission.admitted

    @property
    def empty(self) -> asyncio.Event:
        """Set while no request is inside."""
        return self.admission.empty

    def acquire(
        self, make_room: Callable[[], bool] = lambda: False, session: bool = False
    ) -> AbstractContextManager[None]:
        """A permit for a request, to be held until its answer is ready; see `Admission.acquire`.

        Raises Overloaded, Draining or NotReady.
        """
        return self.admission.acquire(make_room, session)

    async def submit(self, request: EngineRequest) -> Any:
        """Answers a request: returns its result or raises its error. When the caller is cancelled, so is the request.

        Raises DeadlinePassed when the request's turn did not come in time (one that runs ends itself at its deadline,
        with what is ready), and NotReady when a thread has died or is stuck.
        """
        result = None
        async for event in self._events(request):
            if not isinstance(event, PrefillDone):
                result = event
        return result

    async def stream(
        self, request: ContinueRequest
    ) -> AsyncGenerator[PrefillDone | AudioChunk | GenerationResult, None]:
        """The events of a continuation: `PrefillDone`, then each `AudioChunk`, and last the `GenerationResult` without
        samples.

        Closing the generator cancels the request. Raises what `submit` raises.
        """
        request.streamed = True
        events = self._events(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def _events(self, request: EngineRequest) -> AsyncGenerator[Any, None]:
        """What there is to say of a request, up to its result."""
        results = request.results = ResultQueue()
        request.submitted = time.monotonic()
        self.admission.ask(request)
        done = False
        try:
            self._begin(request)
            while not done:
                event = await self._next(request, results)
                if isinstance(event, Failure):
                    try:
                        raise event.error
                    finally:
                        del event  # the error holds this frame: they would keep each other, and the clip, alive
                done = not isinstance(event, PrefillDone | AudioChunk)
                yield event
        finally:
            request.ended = time.monotonic()
            self.admission.end(request, done)
            results.close()
            request.forget()
            if not done:
                self.workers.wake()

    def _begin(self, request: EngineRequest) -> None:
        """Into the queue of those who read; what has been read waits for slots at once, behind no prompt."""
        if not isinstance(request, ContinueRequest) or request.read is None:
            self.prefill_pool.put(request)
        elif self.admission.begin(request):
            request.stage = "slot"
            self.workers.put(request, request.read)

    async def _next(self, request: EngineRequest, results: ResultQueue) -> Any:
        """The request's next event. Raises DeadlinePassed or NotReady when it cannot come."""
        while True:
            with suppress(asyncio.QueueEmpty):
                return results.events.get_nowait()
            left = request.deadline - time.monotonic()
            if request.started == 0.0 and left <= 0.0:
                raise DeadlinePassed("the request waited for its turn until its time was up")
            if not self.healthy:
                raise NotReady("the engine does not answer", headers=SOON)
            pause = health.HEARTBEAT_SECONDS if request.started else min(left, health.HEARTBEAT_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    return await results.events.get()
