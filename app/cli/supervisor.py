"""What `whisper-gpt serve --processes N` runs: it takes the port, starts processes that serve, and replaces who ends.

The port is one socket that all processes inherit, so who hangs or dies takes no connection with it that it has not
accepted (docs/decisions/0003-processes.md). uvicorn's own supervisor (`Multiprocess`) has no pause between tries, waits
for ever for a process that does not drain, and hears no second signal meanwhile; so this is ours. It imports no torch:
it takes a tenth of the memory of a process that serves, and nothing in it can be brought down by a clip.
"""

import json
import logging.config
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from app.cli.listening import START_FAILED, listening, page_address, tell_page
from app.cli.options import logged
from app.errors import UserError
from app.models.catalog import folders
from app.server import exposition, shared_limits
from app.server.limits import LIMITS
from app.server.logs import configuration
from app.settings import NamedKey, Settings, cores, warn_of_unknown_names
from app.shared import Shared, forget_halves, made_folder

TRIES = 5  # starts in a row that come to nothing, while no process serves, before all is given up
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # before a start that follows others; doubled each time
STEADY_SECONDS = 30.0  # who has served for so long ends for a reason of its own, and is replaced at once
SILENT_SECONDS = 60.0  # without a word: the event loop hangs, or the engine is dead
START_SECONDS = 600.0  # to be ready; the first start on a machine compiles, N processes at a time
CUT_SECONDS = 5.0  # after a second signal, before what is left is killed
CLOSING_SECONDS = 2.0  # from the end of a process's socket to its own
PATIENCE_SECONDS = 15.0  # beyond the time that a process may take to drain: it ends by itself before that
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from app.cli.worker import main; main(int(sys.argv[1]))"
)  # fmt: skip
log = logging.getLogger("whispergpt")


class StartError(UserError):
    """The processes do not come up."""

    def __init__(self, message: str, exit_code: int = START_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(order: dict[str, Any]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process that serves, and the socket to talk to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [str(theirs.fileno()), json.dumps(sys.path)]
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            pass_fds=[theirs.fileno(), *order["listeners"]],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for who tells the others
        )
    ours.sendall(json.dumps(order).encode() + b"\n")
    ours.setblocking(False)
    return process, ours


Start = Callable[[dict[str, Any]], tuple[subprocess.Popen[bytes], socket.socket]]


@dataclass(eq=False)
class Worker:
    """A place for a process, and the process that has it."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    said: bytes = b""  # half a line
    ready: bool = False
    heard: float = 0.0  # when it last showed life; before it is ready, when it was started
    since: float = 0.0  # when it was ready
    failures: int = 0  # starts in a row that came to nothing
    lost: int = 0  # processes that ended here, and that the next one is to count
    again: float = 0.0  # when the next one may be
    why: StartError | None = field(default=None)  # what the process itself said of its failure

    def tell(self, word: str) -> None:
        if self.control is not None:
            with suppress(OSError):
                self.control.send(word.encode() + b"\n")


class Supervisor:
    """Starts processes, and replaces those that end, until it is told to end.

    Args:
        orders: what each process is told to serve.
        shared: the folder that they share.
        listeners: the port; closed as soon as the processes alone shall have it.
        drain_seconds: that a process may take to end.
        ready: called when all serve for the first time, with their numbers.
        begin: starts a process.
    """

    def __init__(
        self,
        orders: Sequence[dict[str, Any]],
        shared: Shared,
        listeners: Sequence[socket.socket],
        drain_seconds: float,
        ready: Callable[[list[int]], None],
        begin: Start = start,
    ) -> None:
        self._orders, self._shared, self._listeners = orders, shared, listeners
        self._drain_seconds, self._ready, self._begin = drain_seconds, ready, begin
        self._selector = selectors.DefaultSelector()
        self.workers = [Worker(index) for index in range(len(orders))]
        self._told_ready = False
        self._signals: list[int] = []
        self._obeyed = 0  # of these
        self._ended_cpu_seconds = 0.0
        self._until: float | None = None  # the shutdown has begun; what is left then is killed

    def run(self) -> list[int]:
        """Until all processes have ended; the signals that ended them. Raises StartError."""
        with self._signalled():
            try:
                while self._until is None or self._running:
                    self._start_those_due()
                    self._listen()
                    self._look()
            finally:
                self._until = 0.0  # nobody is replaced any more
                for worker in self._running:
                    self._kill(worker)
                    self._gone(worker)
                self._selector.close()
        return self._signals

    @property
    def _running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.process is not None]

    @contextmanager
    def _signalled(self) -> Iterator[None]:
        """SIGINT and SIGTERM are heard, and wake up who waits."""
        ours, theirs = socket.socketpair()
        before: dict[signal.Signals, Any] = {}

        def hear(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            with suppress(OSError):
                theirs.send(b"!")

        with ours, theirs:
            theirs.setblocking(False)
            self._selector.register(ours, selectors.EVENT_READ, None)
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` wants it
                    before[number] = signal.signal(number, hear)
            try:
                yield
            finally:
                for one, handler in before.items():
                    signal.signal(one, handler)

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            if self._until is None and worker.process is None and worker.again <= now:
                worker.process, worker.control = self._begin(self._orders[worker.index] | {"lost": worker.lost})
                worker.ready, worker.heard, worker.said, worker.why = False, now, b"", None
                self._selector.register(worker.control, selectors.EVENT_READ, worker)
                self._show()

    def _listen(self) -> None:
        """What processes and signals say; returns when there is something to look at, or after a while."""
        for key, _ in self._selector.select(self._pause()):
            worker: Worker | None = key.data
            if worker is None:
                key.fileobj.recv(64)  # type: ignore[union-attr]
            else:
                self._hear(worker)
        while self._obeyed < len(self._signals):
            self._obeyed += 1
            self._end()

    def _pause(self) -> float:
        now = time.monotonic()
        due = [worker.again for worker in self.workers if worker.process is None and self._until is None]
        due += [] if self._until is None else [self._until]
        return max(min([1.0, *(moment - now for moment in due)]), 0.0)

    def _hear(self, worker: Worker) -> None:
        assert worker.control is not None
        try:
            data = worker.control.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone(worker)
            return
        worker.heard = time.monotonic()
        *lines, worker.said = (worker.said + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said["word"] == "failed":
                worker.why = StartError(said["message"], said["exit_code"])
            elif said["word"] == "ready":
                self._is_ready(worker)

    def _is_ready(self, worker: Worker) -> None:
        worker.ready, worker.since, worker.lost = True, time.monotonic(), 0
        pids = [one.process.pid for one in self._running if one.process is not None and one.ready]
        if self._told_ready:
            assert worker.process is not None
            log.info("process %d serves in the place of one that ended", worker.process.pid)
        elif len(pids) == len(self.workers):
            self._told_ready = True
            self._ready(pids)

    def _look(self) -> None:
        """Kills who is silent for too long, or has had the time to end."""
        now = time.monotonic()
        for worker in self._running:
            if self._until is not None:
                late = now >= self._until
            else:
                late = now - worker.heard > (SILENT_SECONDS if worker.ready else START_SECONDS)
                if late:
                    assert worker.process is not None
                    log.error("process %d has been silent for %.0f s: it is killed", worker.process.pid,
                              now - worker.heard)  # fmt: skip
            if late:
                self._kill(worker)  # its socket tells when it is gone
        if hasattr(os, "waitid"):
            self._bury()

    def _bury(self) -> None:
        """The first process of a container inherits what a killed one has left, and is to ask how it ended."""
        own = {worker.process.pid for worker in self._running if worker.process is not None}
        with suppress(ChildProcessError):
            while (one := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and one.si_pid not in own:
                os.waitpid(one.si_pid, 0)

    @staticmethod
    def _kill(worker: Worker) -> None:
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGKILL)  # nobody has asked for its status yet, so the number is its own

    def _gone(self, worker: Worker) -> None:
        """A process has ended, or is about to: what it leaves is put in order, and when the next may start."""
        process, worker.process = worker.process, None
        assert process is not None and worker.control is not None
        self._selector.unregister(worker.control)
        worker.control.close()
        worker.control = None
        until = time.monotonic() + CLOSING_SECONDS
        if hasattr(os, "waitid"):
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if time.monotonic() > until:
                    os.kill(process.pid, signal.SIGKILL)
                time.sleep(0.01)
            self._ended_cpu_seconds += exposition.cpu_seconds(process.pid)  # before it is forgotten
        self._show()
        with suppress(subprocess.TimeoutExpired):
            process.wait(CLOSING_SECONDS)
        process.kill()
        code = process.wait()
        exposition.forget(self._shared.metrics, worker.index)
        forget_halves(self._shared.prompts, process.pid)
        shared_limits.forget(self._shared.limits, worker.index)
        if self._until is None:
            self._plan(worker, process.pid, code)

    def _plan(self, worker: Worker, pid: int, code: int) -> None:
        """When a process is to be started in the place of one that has ended. Raises StartError."""
        now = time.monotonic()
        steady = worker.ready and now - worker.since >= STEADY_SECONDS
        worker.failures = 0 if steady else worker.failures + 1
        worker.lost += 1
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        others = any(one.ready for one in self._running)
        if worker.why is not None and not self._told_ready:
            raise worker.why
        if not others and not worker.ready and worker.failures >= TRIES:
            at_last = f"processes that were to serve ended {TRIES} times at their start, at last with {what}"
            raise worker.why or StartError(at_last)
        first = worker.failures == 0 or (worker.ready and worker.failures == 1)
        pause = 0.0 if first else min(PAUSE_SECONDS * 2.0 ** (worker.failures - 1), LONGEST_PAUSE_SECONDS)
        worker.again = now + pause
        why = f" ({worker.why})" if worker.why is not None else ""
        log.error("process %d ended with %s%s; another is started in its place%s", pid, what, why,
                  f" in {pause:g} s" if pause else "")  # fmt: skip
        worker.ready = False

    def _show(self) -> None:
        pids = [worker.process.pid for worker in self._running if worker.process is not None]
        self._shared.workers.put(pids, self._ended_cpu_seconds)

    def _end(self) -> None:
        """The first signal lets all drain, the second cuts, whichever they are."""
        now = time.monotonic()
        if self._until is not None:
            self._until = min(self._until, now + CUT_SECONDS)
            for worker in self._running:
                worker.tell("cut")
            return
        self._until = now + self._drain_seconds + PATIENCE_SECONDS
        for listener in self._listeners:  # or the port would be open when nobody accepts any more
            listener.close()
        hurry = self._signals[0] == signal.SIGINT
        for worker in self._running:
            if worker.ready:
                worker.tell("hurry" if hurry else "drain")
            else:
                self._kill(worker)


def told_to(settings: Settings) -> dict[str, Any]:
    """Settings as JSON; keys are in it, so it goes where nobody else reads."""
    told = settings.model_dump(mode="json")
    for name in ("api_keys", "admin_keys"):
        keys: list[NamedKey] = getattr(settings, name)
        told[name] = {key.name: key.get_secret_value() for key in keys}
    return told


def serve(settings: Settings) -> None:
    """Serve /continue and /score over HTTP, by several processes."""
    logging.config.dictConfig(configuration(settings, os.getpid()))
    with logged(settings.log_format):
        signals = _serve(settings)
    if signal.SIGTERM in signals:  # as one process ends: by the signal, unless it is the first of its system
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


def _serve(settings: Settings) -> list[int]:
    if os.name != "posix":
        raise UserError("processes: this system cannot hand a port down to several; use 1")
    folders(settings.bundle)
    warn_of_unknown_names()
    if settings.processes * settings.threads > cores():
        log.warning("%d processes with %d threads each share %d cores: more threads than cores are far slower",
                    settings.processes, settings.threads, cores())  # fmt: skip
    with ExitStack() as held:  # whatever ends this, the port is free again, and nothing is left of the folder
        listeners = listening(settings)
        for listener in listeners:
            held.enter_context(listener)
        folder = made_folder(round(settings.prompts_mib * 2**20))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        shared = Shared(folder, -1, settings.processes)
        if any(getattr(settings, name) is not None for name in LIMITS):
            shared_limits.make(shared.limits)
        tell_page(settings)
        order = {"settings": told_to(settings), "folder": str(folder), "listeners": [one.fileno() for one in listeners]}
        orders = [order | {"index": index} for index in range(settings.processes)]
        address = page_address(settings.model_copy(update={"port": listeners[0].getsockname()[1]}))

        def ready(pids: list[int]) -> None:
            log.info("ready: %d processes serve on %s (%s)", len(pids), address, ", ".join(map(str, pids)))

        drain_seconds = max(settings.drain_seconds, settings.drain_grace_seconds)
        return Supervisor(orders, shared, listeners, drain_seconds, ready).run()
