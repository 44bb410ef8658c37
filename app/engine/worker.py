"""The step loop: each decode worker is a thread that owns slots and makes one frame of each of its rows at a time.

A continuation's choices wait in one queue; the worker with the fewest rows takes the next. Rows join and leave between
steps, so a cancelled one is gone within one step. Rows never wait for each other.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from traceback import clear_frames

import numpy as np
import torch

from app.engine.requests import ContinueRequest, NotFinite, PrefillDone
from app.engine.sequence import GeneratedSequence, RunningRequest
from app.errors import Draining
from app.metrics import Metrics
from model.constants import FRAME_RATE_HZ
from model.inference.backend import Backend
from model.inference.types import Frames, PromptState

PAUSE_SECONDS = 0.005
IDLE_SECONDS = 0.5  # between two heartbeats of a worker without rows
log = logging.getLogger("whispergpt")


class DecodeWorkers:
    """The workers, and the queue of choices in front of them.

    Args:
        make: makes the slots of one worker; called again when a step has failed.
        count: workers.
        rows: slots of each.
        threads: what torch may use inside a step.
        heartbeat: called by each worker at least once a second while all is well.
        busy: does anybody wait for a prompt to be read? Then streams do not run far ahead of their listeners.
        check: what each worker asks of its slots, on its own thread, before the first row joins.
    """

    def __init__(
        self,
        make: Callable[[int], Backend],
        count: int,
        rows: int,
        threads: int,
        metrics: Metrics,
        heartbeat: Callable[[], None],
        busy: Callable[[], bool] = lambda: False,
        check: Callable[[Backend], bool] = lambda slots: True,
    ) -> None:
        self._make, self._rows, self._metrics, self._heartbeat, self._busy = make, rows, metrics, heartbeat, busy
        self._torch_threads, self._check = threads, check
        self._checked: list[Future[bool]] = [Future() for _ in range(count)]
        self._changed = threading.Condition()
        self._waiting: deque[GeneratedSequence] = deque()
        self._loads = [0] * count
        self._stopped = False
        self.ending = threading.Event()  # the server stops: what runs ends with what it has
        self._slots: list[Backend] = []
        self.total = count * rows
        self.threads = [
            threading.Thread(target=self._run, args=(index,), name=f"decode-{index}", daemon=True)
            for index in range(count)
        ]
        metrics.slots.set(self.total)

    def start(self) -> bool:
        """Makes the slots, which may take a minute where something must be compiled, and starts the threads.

        Returns whether the check held in every worker; raises what it raised.
        """
        self._slots = [self._make(self._rows) for _ in self.threads]
        for thread in self.threads:
            thread.start()
        held = [checked.result() for checked in self._checked]
        return all(held)

    def stop(self) -> None:
        """Ends the threads after the step in hand."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def end(self) -> None:
        """Choices in slots end at their next step; continuations that have made nothing yet get Draining."""
        with self._changed:
            self.ending.set()
            too_late = [sequence.running for sequence in self._waiting if not sequence.running.joined]
            self._waiting = deque(sequence for sequence in self._waiting if sequence.running.joined)
            self._changed.notify_all()
        for running in too_late:
            running.fail(Draining("the server is shutting down"))

    def put(self, request: ContinueRequest, prompt: PromptState, done: PrefillDone) -> None:
        """A prompt has been read: its choices wait for slots from now on."""
        running = RunningRequest(request, prompt, done, self._metrics, self.ending)
        if request.streamed:
            running.put(done)
        with self._changed:
            self._waiting.extend(running.sequences())
            self._changed.notify_all()

    def wake(self) -> None:
        """A request was cancelled: choices that wait may be dropped."""
        with self._changed:
            self._waiting = deque(
                sequence for sequence in self._waiting if not sequence.running.request.cancelled.is_set()
            )

    def _next_sequences(self, index: int, pause: float) -> list[GeneratedSequence] | None:
        """Choices for free rows; None when the workers have stopped. Waits up to ``pause`` when it has no rows."""
        with self._changed:
            if self._stopped:
                return None
            if not self._loads[index] and not self._waiting:
                self._changed.wait(pause)
            taken = []
            while self._waiting and self._loads[index] < self._rows and self._loads[index] <= min(self._loads):
                sequence = self._waiting.popleft()
                if not sequence.running.request.cancelled.is_set():
                    taken.append(sequence)
                    self._loads[index] += 1
            if self._waiting and taken:
                self._changed.notify_all()  # another worker has fewer rows now
            self._metrics.slots_used.set(sum(self._loads))
            return taken

    def _left(self, index: int, count: int) -> None:
        with self._changed:
            self._loads[index] -= count
            self._metrics.slots_used.set(sum(self._loads))
            if self._waiting:
                self._changed.notify_all()

    def _run(self, index: int) -> None:
        torch.set_num_threads(self._torch_threads)
        slots = self._slots[index]
        try:
            self._checked[index].set_result(self._check(slots))
        except BaseException as error:  # of the start: there is nothing that could serve
            self._checked[index].set_exception(error)
            return
        rows: dict[int, GeneratedSequence] = {}
        while True:
            self._heartbeat()
            taken = self._next_sequences(index, IDLE_SECONDS)
            if taken is None:
                return
            try:
                self._join(slots, rows, taken)
                self._step(index, slots, rows)
            except BaseException as error:  # the rows' to answer for; the thread lives on, with slots that are new
                log.exception("a step has failed")
                clear_frames(error.__traceback__)  # they hold the slots, and the answers to come hold the error
                for sequence in {id(sequence): sequence for sequence in (*rows.values(), *taken)}.values():
                    sequence.running.fail(error)
                self._left(index, self._loads[index])
                rows.clear()
                slots = self._make(self._rows)

    def _join(self, slots: Backend, rows: dict[int, GeneratedSequence], taken: list[GeneratedSequence]) -> None:
        free = (row for row in range(self._rows) if row not in rows)
        for sequence in taken:
            running, row = sequence.running, next(free)
            rows[row] = sequence
            slots.join(row, running.prompt, running.request.options, sequence.index)
            running.join()

    def _step(self, index: int, slots: Backend, rows: dict[int, GeneratedSequence]) -> None:
        gone = [row for row, sequence in rows.items() if sequence.running.request.cancelled.is_set()]
        begin = time.monotonic()
        active = self._runnable([row for row in rows if row not in gone], rows, begin)
        if active:
            made = slots.step(active)
            now = time.monotonic()
            self._metrics.step_seconds.observe(now - begin)
            self._metrics.batch_size.observe(len(active))
            self._metrics.generated_tokens.inc(len(active))
            self._metrics.generated_audio_seconds.inc(len(active) / FRAME_RATE_HZ)
            gone += self._distribute(made, active, rows, now)
        for row in gone:
            slots.leave(row)
            del rows[row]
        if gone:
            self._left(index, len(gone))

    def _runnable(self, active: list[int], rows: dict[int, GeneratedSequence], now: float) -> list[int]:
        """The rows to step now: all, unless some wait for audio, or for a prompt, while others have some in hand."""
        due = [row for row in active if not rows[row].ahead(now)]
        if due or not active:
            return due
        if self._busy():
            with self._changed:
                self._changed.wait(PAUSE_SECONDS)
            return []
        return active

    @staticmethod
    def _distribute(made: Frames, active: Sequence[int], rows: dict[int, GeneratedSequence], now: float) -> list[int]:
        """Give each sequence its frame; returns the rows that are done."""
        finite = np.isfinite(made.logprobs) & np.isfinite(made.samples).all(1)
        done = []
        for at, row in enumerate(active):
            sequence = rows[row]
            if not finite[at]:
                sequence.running.fail(NotFinite())
                done.append(row)
                continue
            sequence.add(made, at)
            sequence.running.frame(now)
            over = sequence.over(now)
            chunks = sequence.chunk(over)
            if over:
                done.append(row)
                sequence.close(*chunks)
            elif chunks:
                sequence.running.put(*chunks)
        return done
