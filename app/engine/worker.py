"""The step loop: each lane is a thread that owns slots and makes one frame of each of its rows at a time.

A continuation's choices wait in one queue; the lane with the fewest rows takes the next. Rows join and leave between
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

from app.engine.requests import NotFinite
from app.engine.sequence import GeneratedSequence, RunningRequest
from app.errors import Draining
from app.metrics import Metrics
from model.constants import FRAME_RATE_HZ
from model.inference.backend import Backend
from model.inference.types import Frames

PAUSE_SECONDS = 0.005
IDLE_SECONDS = 0.5  # between two heartbeats of a lane without rows
log = logging.getLogger("whispergpt")


class DecodeWorkers:
    """The lanes, and the queue of choices in front of them.

    Args:
        make: makes the slots of one lane; called again when a step has failed.
        count: lanes.
        rows: slots of each.
        threads: what torch may use inside a step.
        heartbeat: called by each lane at least once a second while all is well.
        busy: does anybody wait for a prompt to be read? Then streams do not run far ahead of their listeners.
        check: what each lane asks of its slots, on its own thread, before the first row joins.
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
            threading.Thread(target=self._run, args=(lane,), name=f"lane-{lane}", daemon=True) for lane in range(count)
        ]
        metrics.slots.set(self.total)

    def start(self) -> bool:
        """Makes the slots, which may take a minute where something must be compiled, and starts the threads.

        Returns whether the check held in every lane; raises what it raised.
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
            too_late = [choice.seated for choice in self._waiting if not choice.seated.joined]
            self._waiting = deque(choice for choice in self._waiting if choice.seated.joined)
            self._changed.notify_all()
        for seated in too_late:
            seated.fail(Draining("the server is shutting down"))

    def put(self, seated: RunningRequest) -> None:
        """Its choices wait for slots from now on."""
        with self._changed:
            self._waiting.extend(seated.choices())
            self._changed.notify_all()

    def wake(self) -> None:
        """A job was cancelled: choices that wait may be dropped."""
        with self._changed:
            self._waiting = deque(choice for choice in self._waiting if not choice.seated.job.cancelled.is_set())

    def _take(self, lane: int, pause: float) -> list[GeneratedSequence] | None:
        """Choices for free rows; None when the lanes have stopped. Waits up to ``pause`` when the lane is empty."""
        with self._changed:
            if self._stopped:
                return None
            if not self._loads[lane] and not self._waiting:
                self._changed.wait(pause)
            taken = []
            while self._waiting and self._loads[lane] < self._rows and self._loads[lane] <= min(self._loads):
                choice = self._waiting.popleft()
                if not choice.seated.job.cancelled.is_set():
                    taken.append(choice)
                    self._loads[lane] += 1
            if self._waiting and taken:
                self._changed.notify_all()  # another lane has fewer rows now
            self._metrics.slots_used.set(sum(self._loads))
            return taken

    def _left(self, lane: int, count: int) -> None:
        with self._changed:
            self._loads[lane] -= count
            self._metrics.slots_used.set(sum(self._loads))
            if self._waiting:
                self._changed.notify_all()

    def _run(self, lane: int) -> None:
        torch.set_num_threads(self._torch_threads)
        slots = self._slots[lane]
        try:
            self._checked[lane].set_result(self._check(slots))
        except BaseException as error:  # of the start: there is nothing that could serve
            self._checked[lane].set_exception(error)
            return
        rows: dict[int, GeneratedSequence] = {}
        while True:
            self._heartbeat()
            taken = self._take(lane, IDLE_SECONDS)
            if taken is None:
                return
            try:
                self._join(slots, rows, taken)
                self._step(lane, slots, rows)
            except BaseException as error:  # the rows' to answer for; the thread lives on, with slots that are new
                log.exception("a step has failed")
                clear_frames(error.__traceback__)  # they hold the slots, and the answers to come hold the error
                for choice in {id(choice): choice for choice in (*rows.values(), *taken)}.values():
                    choice.seated.fail(error)
                self._left(lane, self._loads[lane])
                rows.clear()
                slots = self._make(self._rows)

    def _join(self, slots: Backend, rows: dict[int, GeneratedSequence], taken: list[GeneratedSequence]) -> None:
        free = (row for row in range(self._rows) if row not in rows)
        for choice in taken:
            seated, row = choice.seated, next(free)
            rows[row] = choice
            slots.join(row, seated.prompt, seated.job.options, choice.index)
            seated.join()

    def _step(self, lane: int, slots: Backend, rows: dict[int, GeneratedSequence]) -> None:
        gone = [row for row, choice in rows.items() if choice.seated.job.cancelled.is_set()]
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
            self._left(lane, len(gone))

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
        """Give each choice its frame; returns the rows that are done."""
        finite = np.isfinite(made.logprobs) & np.isfinite(made.samples).all(1)
        done = []
        for at, row in enumerate(active):
            choice = rows[row]
            if not finite[at]:
                choice.seated.fail(NotFinite())
                done.append(row)
                continue
            choice.add(made, at)
            choice.seated.frame(now)
            over = choice.over(now)
            pieces = choice.piece(over)
            if over:
                done.append(row)
                choice.close(*pieces)
            elif pieces:
                choice.seated.put(*pieces)
        return done
