"""The step loop: each decode worker is a thread that owns slots and makes one frame of each of its rows at a time.

A continuation's choices wait in one queue a model; the worker with the fewest rows takes the next. Rows join and leave
between steps, so a cancelled one is gone within one step. Rows never wait for each other. Each model has workers of its
own, which share slots and cores with those of the others (`app.engine.budget`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from traceback import clear_frames

import numpy as np
import torch

from app.engine import health
from app.engine.budget import Cores, SlotBudget
from app.engine.requests import ContinueRequest, NotFinite, PrefillDone, ReadPrompt
from app.engine.scheduler import Scheduler
from app.engine.sequence import GeneratedSequence, RunningRequest
from app.errors import Draining
from app.metrics import Metrics
from model.constants import FRAME_RATE_HZ
from model.inference.backend import Backend
from model.inference.types import Frames

IDLE_SECONDS = 0.5  # between two heartbeats of a worker without rows
RENEWAL_PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # before each try to renew slots; after the last, it is over
log = logging.getLogger("whispergpt")


@dataclass
class WorkerState:
    """What one worker's thread has in hand."""

    index: int
    slots: Backend
    rows: dict[int, GeneratedSequence] = field(default_factory=dict)
    scheduler: Scheduler = field(default_factory=Scheduler)


class DecodeWorkers:
    """The workers of a model, and the queue of choices in front of them.

    Args:
        budget: the slots that may be taken, those of other models among them.
        cores: on which all models step.
        ending: set when the server stops: what runs ends with what it has.
        label: of the model, in metrics and in the names of threads.
        make: makes the slots of one worker; called again when a step has failed.
        count: workers.
        rows: slots of each.
        threads: what torch may use inside a step.
        heartbeat: called by each worker at least once a second while all is well.
        prompts_wait: is a prompt being read, or waiting for it?
        check: what each worker asks of its slots, on its own thread, before the first row joins.
        died: called by the thread of a worker that cannot go on, with the reason.
    """

    def __init__(
        self,
        budget: SlotBudget,
        cores: Cores,
        ending: threading.Event,
        label: str,
        make: Callable[[int], Backend],
        count: int,
        rows: int,
        threads: int,
        metrics: Metrics,
        heartbeat: Callable[[], None],
        prompts_wait: Callable[[], bool] = lambda: False,
        check: Callable[[Backend], bool] = lambda slots: True,
        died: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._budget, self._cores, self.ending = budget, cores, ending
        self._make, self._rows, self._metrics, self._heartbeat = make, rows, metrics, heartbeat
        self._model_slots_used = metrics.model_slots_used.labels(label)
        self._model_tokens = metrics.model_generated_tokens.labels(label)
        self._prompts_wait, self._torch_threads, self._check = prompts_wait, threads, check
        self._checked: list[Future[bool]] = [Future() for _ in range(count)]
        self._changed = budget.changed
        self._waiting: deque[GeneratedSequence] = deque()
        self._loads = [0] * count
        self._serving = [False] * count  # those that have slots
        self._failing = [False] * count  # those that could not renew them, so far
        self._stopped = threading.Event()
        self._slots: dict[int, Backend] = {}  # until each thread takes its own
        self.total = count * rows
        self.threads = [
            threading.Thread(target=health.guarded(self._run, died), args=(index,), name=f"decode-{index}", daemon=True)
            for index in range(count)
        ]
        with self._changed:
            budget.share(self._in_turn, self._free_rows)

    def _in_turn(self) -> Sequence[GeneratedSequence]:
        """The choices that wait."""
        return self._waiting

    def _free_rows(self) -> int:
        """How many of them could join."""
        return sum(self._rows - load for load, serves in zip(self._loads, self._serving, strict=True) if serves)

    def start(self) -> bool:
        """Makes the slots, which may take a minute where something must be compiled, and starts the threads.

        Returns whether the check held in every worker; raises what it raised.
        """
        self._slots = {index: self._make(self._rows) for index in range(len(self.threads))}
        for thread in self.threads:
            thread.start()
        held = [checked.result() for checked in self._checked]
        return all(held)

    @property
    def serving(self) -> bool:
        """Has a worker slots, or will have them in a moment? One step that fails makes nobody wait longer than that."""
        return not all(self._failing)

    def stop(self) -> None:
        """Ends the threads after the step in hand. For good: the slots are others' from then on."""
        with self._changed:
            if not self._stopped.is_set():
                self._stopped.set()
                self._budget.part(self._in_turn)
            self._changed.notify_all()

    def end(self) -> None:
        """Choices in slots end at their next step; continuations that have generated nothing yet get Draining."""
        with self._changed:
            self.ending.set()
            too_late = [sequence.running for sequence in self._waiting if not sequence.running.joined]
            self._waiting = deque(sequence for sequence in self._waiting if sequence.running.joined)
            self._changed.notify_all()
        for running in too_late:
            running.fail(Draining("the server is shutting down"))

    def put(
        self, request: ContinueRequest, prompt: ReadPrompt, queue_seconds: float = 0.0, prefill_seconds: float = 0.0
    ) -> None:
        """A prompt has been read, just now or for an earlier request: its choices wait for slots from now on.

        After `end` it gets Draining.
        """
        done = PrefillDone(prompt.logprobs, prompt.tail, queue_seconds, prefill_seconds)
        running = RunningRequest(request, prompt.state, done, self._metrics, self.ending)
        if request.streamed:
            running.put(done)
        with self._changed:
            late = self.ending.is_set()  # `end` has been here
            if not late and not request.cancelled.is_set():  # otherwise `wake` has been, and would not come again
                running.turn = self._budget.next_turn()
                self._waiting.extend(running.sequences())
                self._changed.notify_all()
        if late:
            running.fail(Draining("the server is shutting down"))

    def wake(self) -> None:
        """A request was cancelled: choices that wait may be dropped."""
        with self._changed:
            self._waiting = deque(
                sequence for sequence in self._waiting if not sequence.running.request.cancelled.is_set()
            )
            self._changed.notify_all()  # those of other models may have stood behind them

    def _next_sequences(self, index: int, pause: float) -> list[GeneratedSequence] | None:
        """Choices for free rows; None when the workers have stopped. Waits up to ``pause`` when it has no rows."""
        with self._changed:
            if self._stopped.is_set():
                return None
            if not self._loads[index] and not (self._waiting and self._budget.has_room(self._waiting[0])):
                self._changed.wait(pause)  # other models may have all slots: whoever gives one back tells
            joining = []
            least = min(load for load, serves in zip(self._loads, self._serving, strict=True) if serves)
            while (
                self._waiting
                and self._loads[index] < self._rows
                and self._loads[index] <= least
                and self._budget.has_room(self._waiting[0])
            ):
                sequence = self._waiting.popleft()
                if not sequence.running.request.cancelled.is_set():
                    joining.append(sequence)
                    self._take(index, 1)
            if joining:
                self._changed.notify_all()  # another worker has fewer rows now, or another model's choice is the first
            return joining

    def _take(self, index: int, count: int) -> None:
        """A worker has so many rows more. `_changed` is held."""
        self._loads[index] += count
        self._budget.take(count)
        self._model_slots_used.set(sum(self._loads))

    def _left(self, index: int, count: int) -> None:
        with self._changed:
            self._take(index, -count)
            self._changed.notify_all()

    def _run(self, index: int) -> None:
        torch.set_num_threads(self._torch_threads)
        first = WorkerState(index, self._slots.pop(index))
        try:
            held = self._check(first.slots)
        except BaseException as error:  # of the start: there is nothing that could serve
            self._checked[index].set_exception(error)
            return
        self._set_serving(index, True)
        self._checked[index].set_result(held)
        state: WorkerState | None = first
        del first
        while state is not None and not self._serve(state):
            state = None  # before the new ones are made: there may be no room for both
            state = self._renewed(index)

    def _set_serving(self, index: int, serves: bool) -> None:
        with self._changed:
            self._serving[index] = serves
            self._failing[index] = False
            self._changed.notify_all()  # what waits is for those that serve

    def _serve(self, state: WorkerState) -> bool:
        """Steps until the workers are stopped, True, or a step has failed, False: then its rows have, too."""
        while True:
            self._heartbeat()
            joining = self._next_sequences(state.index, IDLE_SECONDS)
            if joining is None:
                self._left(state.index, self._loads[state.index])  # those of requests that nobody waits for
                return True
            try:
                self._join(state, joining)
                self._step(state)
            except BaseException as error:  # the rows' to answer for; the thread lives on, with slots that are new
                log.exception("a step has failed")
                clear_frames(error.__traceback__)  # they hold the slots, and the answers to come hold the error
                self._set_serving(state.index, False)
                self._fail([*state.rows.values(), *joining], error)
                self._left(state.index, self._loads[state.index])
                del state, joining  # the error holds this frame until its last client has it
                return False

    def _renewed(self, index: int) -> WorkerState | None:
        """New slots; None when the workers are stopped meanwhile. Raises ThreadDied."""
        for pause in RENEWAL_PAUSES_SECONDS:
            self._heartbeat()
            if self._stopped.wait(pause):
                return None
            try:
                state = self._tried(index)
            except BaseException as error:
                log.exception("the slots of a decode worker could not be renewed")
                clear_frames(error.__traceback__)
                self._failing[index] = True
            else:
                self._set_serving(index, True)
                return state
        raise health.ThreadDied(f"slots could not be renewed in {len(RENEWAL_PAUSES_SECONDS)} tries")

    def _tried(self, index: int) -> WorkerState:
        """New slots that can make a frame; without that, they are none. Raises what goes wrong."""
        state = WorkerState(index, self._make(self._rows))
        self._check(state.slots)
        return state

    @staticmethod
    def _fail(sequences: list[GeneratedSequence], error: BaseException) -> None:
        """Ends their requests. In a frame of its own: names of a thread's loop keep what they stand for alive."""
        for sequence in sequences:
            sequence.running.fail(error)

    def _join(self, state: WorkerState, joining: list[GeneratedSequence]) -> None:
        free = (row for row in range(self._rows) if row not in state.rows)
        for sequence in joining:
            running, row = sequence.running, next(free)
            state.rows[row] = sequence
            state.scheduler.join(row, streamed=sequence.streamed, deadline=running.request.deadline)
            state.slots.join(row, running.prompt, running.request.options, sequence.index)
            running.join()

    def _leave(self, state: WorkerState, rows: list[int]) -> None:
        for row in rows:
            state.slots.leave(row)
            state.scheduler.leave(row)
            del state.rows[row]
        if rows:
            self._left(state.index, len(rows))

    def _step(self, state: WorkerState) -> None:
        rows = state.rows
        self._leave(state, [row for row, one in rows.items() if one.running.request.cancelled.is_set()])
        begin = time.monotonic()
        turn = state.scheduler.turn(begin, prompts_wait=self._prompts_wait(), ending=self.ending.is_set())
        if not turn.rows:
            if turn.pause_seconds:
                with self._changed:
                    self._changed.wait(turn.pause_seconds)
            return
        with self._cores.one(state.scheduler.due(turn.rows, begin)):
            frames = state.slots.step(turn.rows)
        now = time.monotonic()
        state.scheduler.generated(turn.rows, now)
        self._metrics.step_seconds.observe(now - begin)
        self._metrics.batch_size.observe(len(turn.rows))
        self._metrics.generated_tokens.inc(len(turn.rows))
        self._model_tokens.inc(len(turn.rows))
        self._metrics.generated_audio_seconds.inc(len(turn.rows) / FRAME_RATE_HZ)
        self._leave(state, self._distribute(state, frames, turn.rows, now))

    @staticmethod
    def _distribute(state: WorkerState, frames: Frames, active: Sequence[int], now: float) -> list[int]:
        """Give each sequence its frame; returns the rows that are done."""
        rows = state.rows
        finite = np.isfinite(frames.logprobs) & np.isfinite(frames.samples).all(1)
        done = []
        for at, row in enumerate(active):
            sequence = rows[row]
            if not finite[at]:
                sequence.running.fail(NotFinite())
                done.append(row)
                continue
            sequence.add(frames, at)
            sequence.running.frame(now)
            over = sequence.over(now)
            chunks = sequence.chunk(over)
            if over:
                done.append(row)
                sequence.close(*chunks, left=state.slots.snapshot(row) if sequence.running.request.keep else None)
            elif chunks:
                sequence.running.put(*chunks)
        return done
