"""Who scores a corpus: this process, or several, of which each has one clip at a time and a bundle of its own.

A process that is lost (a kill for memory, a crash within a library) costs nothing but time: another takes its place
and its clip. A clip that is lost twice is told as an error.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from app.corpora.clips import Clip
from app.corpora.scoring import Job, Scorer, failure
from app.errors import UserError

Row = dict[str, Any]
TRIES = 2
END_SECONDS = 5.0


def rows_here(scorer: Scorer, clips: Iterable[Clip]) -> Iterator[Row]:
    """A row a clip, in their order."""
    return map(scorer.row, clips)


def serve(connection: Connection, job: Job) -> None:
    """The work of a process: a row for each clip that comes, until none does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the process that asked
    import torch

    torch.set_num_threads(job.threads)
    scorer = job.load()
    with suppress(EOFError, BrokenPipeError):  # who asked is gone
        connection.send(None)
        while True:
            connection.send(scorer.row(connection.recv()))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    clip: Clip | None = None

    def give(self, clip: Clip) -> None:
        self.clip = clip
        with suppress(BrokenPipeError, ConnectionResetError):  # it is lost, which the next look at it tells
            self.connection.send(clip)

    def end(self) -> None:
        self.connection.close()
        self.process.join(END_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Workers:
    """So many processes. ``rows`` may be used once."""

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of torch
        self._count = count
        self._all: list[_Worker] = []
        self._again: list[Clip] = []
        self._lost: dict[str, int] = {}

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._all if worker.process.pid is not None]

    def _start(self) -> None:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=serve, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()
        self._all.append(_Worker(process, ours))

    def rows(self, clips: Iterable[Clip]) -> Iterator[Row]:
        """A row a clip, as they are done. Raises UserError when a process does not even load the bundle."""
        coming, more = iter(clips), True
        try:
            for _ in range(self._count):
                self._start()
            while True:
                for worker in self._all:
                    if worker.ready and worker.clip is None and (self._again or more):
                        clip = self._again.pop() if self._again else next(coming, None)
                        more = more and clip is not None
                        if clip is not None:
                            worker.give(clip)
                busy = [worker for worker in self._all if worker.clip is not None]
                if not busy and not more and not self._again:
                    return
                busy += [worker for worker in self._all if not worker.ready]
                for connection in wait([worker.connection for worker in busy]):
                    worker = next(one for one in busy if one.connection is connection)
                    yield from self._heard(worker)
        finally:
            for worker in self._all:
                worker.end()

    def _heard(self, worker: _Worker) -> Iterator[Row]:
        """What a process has to say: that it is ready, or a row; or that it is lost."""
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            yield from self._replace(worker)
            return
        if worker.ready:
            worker.clip = None
            yield answer
        worker.ready = True

    def _replace(self, worker: _Worker) -> Iterator[Row]:
        """Another process for one that is lost; the row of a clip that was lost with it too often."""
        worker.end()
        self._all.remove(worker)
        if not worker.ready:
            raise UserError(f"a process that was to score ended at its start, with exit code {worker.process.exitcode}")
        self._start()
        clip = worker.clip
        if clip is None:
            return
        self._lost[clip.id] = self._lost.get(clip.id, 0) + 1
        if self._lost[clip.id] < TRIES:
            self._again.append(clip)
        else:
            code = worker.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            yield failure(clip, "worker_lost", f"the process that scored it ended, {TRIES} times, at last with {how}")
