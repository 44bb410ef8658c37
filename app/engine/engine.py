"""The engine: it admits requests, reads prompts, scores clips and steps continuations, each on threads of its own.

The event loop never computes: it acquires a permit, submits a request and awaits its events. Prompts are read on one
set of threads, clips are scored on another of lower priority (`app.engine.prefill_pool`), and the decode workers step
(`app.engine.worker`): a long prompt or a long clip does not hold up the continuations under way. A request sees a
cancellation within one step, or one chunk of reading.

It may compute with several models. They come and go while it runs; permits, slots, cores and the threads that read are
of the engine, so that several models take no more of these than one.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any
from weakref import WeakSet

from app.engine import health
from app.engine.admission import SOON, Admission
from app.engine.budget import Cores, SlotBudget
from app.engine.prefill_pool import PrefillPool
from app.engine.requests import (
    AudioChunk,
    ContinueRequest,
    EngineRequest,
    Failure,
    GenerationResult,
    Model,
    PrefillDone,
    ResultQueue,
)
from app.engine.worker import DecodeWorkers
from app.errors import DeadlinePassed, NotReady
from app.metrics import Metrics
from model.checkpoint import Bundle
from model.inference.backend import Backend, backend_for, default_slots, workers_for
from model.inference.footprint import nbytes_of
from model.inference.invariance import keeps_rows_apart

LAST_WORDS_SECONDS = 5.0  # for requests inside to be answered when inference is dead
log = logging.getLogger("whispergpt")


class Engine:
    """Threads over the bundles that it has loaded, and ``slots + waiting`` permits for requests.

    Args:
        bundle: the first model, which requests are for that name no other; it stays.
        metrics: where to count.
        waiting: requests that may wait beside those that have slots.
        threads: of each kind: decode workers, threads that read prompts, threads that score.
        slots: rows of all decode workers together; by default what suits the device and the first model.
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
        self.metrics = metrics
        self._threads, self._codebooks = threads, codebooks
        self._heartbeats = health.Heartbeats()
        self._stopping = self._dead = False
        self._dying = threading.Lock()  # whoever has it tells that inference is dead
        self.ending = threading.Event()  # the server stops: what runs ends with what it has
        self._wanted_slots, self._slots = slots, slots or default_slots(bundle)
        workers = min(workers_for(bundle, threads), self._slots)
        total = -(-self._slots // workers) * workers
        self._budget, self._cores = SlotBudget(total, metrics), Cores(max(threads, workers))
        self._workers: dict[Model, DecodeWorkers] = {}
        self._made: dict[Model, WeakSet[Backend]] = {}  # the slots of each, to be counted when all are there
        self._changing = threading.Lock()  # of these, by one thread at a time
        self.first = self._added(bundle)
        self.admission = Admission(total + waiting, total, metrics, lambda: self.healthy)
        self.prefill_pool = PrefillPool(
            bundle.device,
            threads,
            metrics,
            self.admission,
            self._heartbeats,
            self._workers.__getitem__,
            self.ending,
            self._died,
        )

    @property
    def bundle(self) -> Bundle:
        """That of the first model."""
        return self.first.bundle

    @property
    def workers(self) -> DecodeWorkers:
        """Those of the first model."""
        return self._workers[self.first]

    def _added(self, bundle: Bundle) -> Model:
        """A model that has no slots yet. It would have as many alone: a request's bits are the same."""
        model = Model(bundle, self._codebooks or bundle.codec.config.codebooks, self.metrics.model_label(bundle.name))
        slots = min(self._wanted_slots or default_slots(bundle), self._slots)
        count = min(workers_for(bundle, self._threads), slots)
        made: WeakSet[Backend] = WeakSet()
        self._made[model] = made

        def make(rows: int) -> Backend:
            slots = backend_for(bundle, rows, model.codebooks)
            made.add(slots)
            return slots

        self._workers[model] = DecodeWorkers(
            self._budget,
            self._cores,
            self.ending,
            model.label,
            make,
            count,
            -(-slots // count),
            1,
            self.metrics,
            self._heartbeats.heartbeat,
            lambda: self.prefill_pool.reads_prompts,
            lambda slots: keeps_rows_apart(bundle, slots),
            self._died,
        )
        return model

    def start(self) -> None:
        """Starts the threads. Not for the event loop: the first start on a machine compiles for a minute."""
        self.prefill_pool.start()
        self._heartbeats.watch(self.prefill_pool.threads)
        self._begin_model(self.first)

    def load(self, bundle: Bundle) -> Model:
        """Computes with one more bundle from now on. Not for the event loop. Raises what making its slots raises."""
        with self._changing:
            model = self._added(bundle)
            try:
                self._begin_model(model)
            except BaseException:
                self._end_model(model)
                raise
        return model

    def unload(self, model: Model) -> None:
        """Computes with a model no longer, and lets go of it; nobody may wait for anything of it.

        Not for the event loop.
        """
        assert model is not self.first, "it stays"
        with self._changing:
            self._end_model(model)

    def _begin_model(self, model: Model) -> None:
        workers = self._workers[model]
        model.batch_invariant = workers.start()
        model.nbytes = nbytes_of(model.bundle, *self._made.pop(model))
        self._heartbeats.watch(workers.threads)
        self._tell_invariance()
        if not model.batch_invariant:
            log.warning("on this machine a request's bits may depend on the requests beside it (docs/engine.md)")

    def _end_model(self, model: Model) -> None:
        workers = self._workers.pop(model)
        self._made.pop(model, None)
        self._heartbeats.forget(workers.threads)
        self._end_threads(workers)
        self._tell_invariance()

    def _tell_invariance(self) -> None:
        self.metrics.batch_invariant.set(all(one.batch_invariant for one in self._workers))

    @staticmethod
    def _end_threads(*pools: DecodeWorkers | PrefillPool) -> None:
        for pool in pools:
            pool.stop()
        for thread in (thread for pool in pools for thread in pool.threads):
            if thread.is_alive():
                thread.join(timeout=10)

    def stop(self) -> None:
        """Ends the threads after the chunk or step in hand."""
        self._stopping = True
        self._end_threads(*self._workers.values(), self.prefill_pool)

    def end(self) -> None:
        """The shutdown waits no longer: continuations return what they have, `cancelled`; all else gets Draining."""
        self.draining = True
        for workers in list(self._workers.values()):
            workers.end()

    def serves(self, model: Model) -> bool:
        """The same as `healthy`, of what a model's requests need."""
        workers = self._workers.get(model)
        return self._heartbeats.fresh and workers is not None and workers.serving and not self._dead

    @property
    def healthy(self) -> bool:
        """The threads live, their heartbeats are fresh, and a worker of the first model has slots."""
        return self.serves(self.first)

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
        model = request.model = request.model or self.first
        self.admission.ask(request)
        done = False
        try:
            self._begin(request, model)
            while not done:
                event = await self._next(request, model, results)
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
            if not done and model in self._workers:
                self._workers[model].wake()

    def _begin(self, request: EngineRequest, model: Model) -> None:
        """Into the queue of those who read; what has been read waits for slots at once, behind no prompt."""
        if not isinstance(request, ContinueRequest) or request.read is None:
            self.prefill_pool.put(request)
        elif self.admission.begin(request):
            request.stage = "slot"
            self._workers[model].put(request, request.read)

    async def _next(self, request: EngineRequest, model: Model, results: ResultQueue) -> Any:
        """The request's next event. Raises DeadlinePassed or NotReady when it cannot come."""
        while True:
            with suppress(asyncio.QueueEmpty):
                return results.events.get_nowait()
            left = request.deadline - time.monotonic()
            if request.started == 0.0 and left <= 0.0:
                raise DeadlinePassed("the request waited for its turn until its time was up")
            if not self.serves(model):
                raise NotReady("the engine does not answer", headers=SOON)
            pause = health.HEARTBEAT_SECONDS if request.started else min(left, health.HEARTBEAT_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    return await results.events.get()
