"""A discrete-event simulation of one server: who waits how long for the first audio.

What is as in the server: permits, threads that read prompts first come first served, decode workers that take the next
continuation when they have the fewest rows and make a frame of each row that runs, the pace rule (the server's own:
`app.engine.scheduler`), chunks of 3, 6, 12 and 24 frames. What is a model: the cores. Threads that can run share them
by their weights, and none gets more than one core (processor sharing). What HTTP and the client take before a prompt is
read is one more thread. All is slower by a factor when two or more run, since they share Python's lock, caches and
memory; sending is part of that factor.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from app.engine.prefill_pool import NICENESS
from app.engine.scheduler import Scheduler
from app.engine.sequence import FIRST_CHUNK_FRAMES, LONGEST_CHUNK_FRAMES
from benchmarks.scaling.costs import Costs
from model.constants import FRAME_RATE_HZ

NICE_STEP = 1.25  # Linux: each level of niceness is worth a quarter more or less (sched(7), prio_to_weight)
FOREVER = float("inf")


@dataclass(frozen=True)
class Machine:
    """A server and its cores. ``threads`` of each kind; ``slots`` of all workers together."""

    cores: int = 2
    threads: int = 2
    slots: int = 32
    queue: int = 16


@dataclass(frozen=True)
class Asked:
    """A stream that is asked for. Seconds."""

    at: float
    prompt_seconds: float
    made_seconds: float


@dataclass
class Heard:
    """What its listener gets. Seconds, from when it was asked for."""

    asked: Asked
    refused: bool = False
    first_audio: float = FOREVER
    ended: float = FOREVER
    short: float = 0.0  # what a player should have held back for no chunk to come too late
    _received: float = 0.0

    def take(self, frames: int, now: float) -> None:
        """A chunk has come; the player plays since the first one."""
        now -= self.asked.at
        if self.first_audio == FOREVER:
            self.first_audio = now
        else:
            self.short = max(self.short, now - self.first_audio - self._received)
        self._received += frames / FRAME_RATE_HZ


@dataclass
class Thread:
    """Something that computes: what is left of its piece of work, and what comes after that."""

    weight: float
    left: float = 0.0  # core seconds
    then: Callable[[], None] | None = None  # None: it waits

    def begin(self, seconds: float, then: Callable[[], None]) -> None:
        assert self.then is None
        self.left, self.then = max(seconds, 1e-9), then


def shares(weights: list[float], cores: int) -> list[float]:
    """Cores that each of these threads has: by weight, one at most."""
    given = [0.0] * len(weights)
    rest = sorted(range(len(weights)), key=lambda index: -weights[index])
    left, whole = float(cores), sum(weights)
    for index in rest:  # the heaviest first: what it cannot use is the others'
        given[index] = min(1.0, left * weights[index] / whole)
        left -= given[index]
        whole -= weights[index]
    return given


@dataclass
class Sequence:
    """A continuation in a row."""

    heard: Heard
    frames: int
    made: int = 0
    sent: int = 0
    chunk: int = FIRST_CHUNK_FRAMES


@dataclass
class Worker:
    """A decode worker: its thread, its rows, and the server's own rule of who runs."""

    thread: Thread
    scheduler: Scheduler = field(default_factory=Scheduler)
    rows: dict[int, Sequence] = field(default_factory=dict)
    asleep_until: float = FOREVER


class Simulation:
    """One run over the requests, which may come in any order."""

    def __init__(self, machine: Machine, costs: Costs, requests: Iterable[Asked]) -> None:
        count = min(machine.threads, machine.slots)
        self.machine, self.costs = machine, costs
        self.now = 0.0
        self.heard = [Heard(asked) for asked in sorted(requests, key=lambda one: one.at)]
        self._coming = deque(self.heard)
        self._rows_each = -(-machine.slots // count)
        self._permits = self._rows_each * count + machine.queue
        self._front = Thread(1.0)  # the event loop, and the clients on the same machine
        self._readers = [Thread(NICE_STEP ** -NICENESS["read"]) for _ in range(machine.threads)]
        self._workers = [Worker(Thread(1.0)) for _ in range(count)]
        self._threads = [self._front, *self._readers, *(worker.thread for worker in self._workers)]
        self._arrived: deque[Heard] = deque()  # on their way through the front
        self._prompts: deque[Heard] = deque()  # to be read
        self._waiting: deque[Sequence] = deque()  # for a row
        self._reading = 0
        self._step_seconds = [0.0, *(costs.step_seconds(rows) for rows in range(1, self._rows_each + 1))]

    def run(self) -> list[Heard]:
        """Until all have been served."""
        while True:
            self._give_work()
            working = [thread for thread in self._threads if thread.then is not None]
            events = [self._coming[0].asked.at] if self._coming else []
            events += [worker.asleep_until for worker in self._workers if worker.asleep_until < FOREVER]
            rates = shares([thread.weight for thread in working], self.machine.cores)
            if len(working) > 1:
                rates = [rate / self.costs.company for rate in rates]
            events += [self.now + thread.left / rate for thread, rate in zip(working, rates, strict=True)]
            if not events:
                return self.heard
            then = min(events)
            done = []
            for thread, rate in zip(working, rates, strict=True):
                thread.left -= (then - self.now) * rate
                if thread.left <= 1e-10:
                    done.append(thread)
            self.now = then
            for thread in done:
                after, thread.then = thread.then, None
                assert after is not None
                after()
            for worker in self._workers:
                if worker.asleep_until <= self.now:
                    worker.asleep_until = FOREVER
            while self._coming and self._coming[0].asked.at <= self.now:
                self._arrive(self._coming.popleft())

    def _arrive(self, heard: Heard) -> None:
        if self._permits == 0:
            heard.refused = True
            return
        self._permits -= 1
        self._arrived.append(heard)

    def _give_work(self) -> None:
        """Whoever waits and finds something to do begins it."""
        if self._front.then is None and self._arrived:
            heard = self._arrived.popleft()
            self._front.begin(self.costs.request, lambda heard=heard: self._prompts.append(heard))  # type: ignore[misc]
        for reader in self._readers:
            if reader.then is None and self._prompts:
                heard = self._prompts.popleft()
                self._reading += 1
                seconds = self.costs.prefill_seconds(heard.asked.prompt_seconds)
                reader.begin(seconds, lambda heard=heard: self._has_been_read(heard))  # type: ignore[misc]
        for worker in self._workers:
            if worker.thread.then is None and worker.asleep_until == FOREVER:
                self._step(worker)

    def _has_been_read(self, heard: Heard) -> None:
        self._reading -= 1
        self._waiting.append(Sequence(heard, round(heard.asked.made_seconds * FRAME_RATE_HZ)))
        for worker in self._workers:
            worker.asleep_until = FOREVER  # they are woken

    def _step(self, worker: Worker) -> None:
        least = min(len(one.rows) for one in self._workers)
        while self._waiting and len(worker.rows) < self._rows_each and len(worker.rows) <= least:
            row = next(row for row in range(self._rows_each) if row not in worker.rows)
            worker.rows[row] = self._waiting.popleft()
            worker.scheduler.join(row, streamed=True, deadline=FOREVER)
        if not worker.rows:
            return
        prompts_wait = self._reading > 0 or bool(self._prompts)
        turn = worker.scheduler.turn(self.now, prompts_wait=prompts_wait, ending=False)
        if turn.rows:
            worker.thread.begin(self._step_seconds[len(turn.rows)], lambda: self._stepped(worker, turn.rows))
        else:
            worker.asleep_until = self.now + turn.pause_seconds

    def _stepped(self, worker: Worker, rows: list[int]) -> None:
        worker.scheduler.generated(rows, self.now)
        for row in rows:
            sequence = worker.rows[row]
            sequence.made += 1
            over = sequence.made == sequence.frames
            if over or sequence.made - sequence.sent >= sequence.chunk:
                sequence.heard.take(sequence.made - sequence.sent, self.now)
                sequence.sent = sequence.made
                sequence.chunk = min(2 * sequence.chunk, LONGEST_CHUNK_FRAMES)
            if over:
                sequence.heard.ended = self.now - sequence.heard.asked.at
                del worker.rows[row]
                worker.scheduler.leave(row)
                self._permits += 1


def simulate(machine: Machine, costs: Costs, requests: Iterable[Asked]) -> list[Heard]:
    """What the listeners of a server get, in the order in which they asked."""
    return Simulation(machine, costs, requests).run()
