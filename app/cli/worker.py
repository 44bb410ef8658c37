"""One of several processes that serve together, and what it has to say to the supervisor that has started it.

A socket connects the two (`app.cli.supervisor`), a line each: the supervisor tells what to serve, and when to end; the
process tells that it is ready, that it lives, or why it cannot start. Signals are the supervisor's alone: a service
manager may send SIGTERM to all processes at once, and the second one that came would cut what is under way.
"""

import json
import logging.config
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from app.cli.options import exit_code, pick_device, told, user_errors
from app.cli.serve import Server, configured
from app.engine.engine import Engine
from app.main import create_app
from app.models.catalog import load_all
from app.server import exposition
from app.server.logs import configuration, take_prints
from app.server.memory import keep_little
from app.settings import PREFIX, Settings
from app.shared import Shared, hold, remove_left

ALIVE_TICKS = 10  # of uvicorn's, 0.1 s each


class Supervisor:
    """What a process knows of who has started it. Its words may come on any thread."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = control.makefile("rb")

    def order(self) -> dict[str, Any]:
        """What to serve. The process ends if nobody tells."""
        line = self._lines.readline()
        if not line:
            raise SystemExit(0)
        found: dict[str, Any] = json.loads(line)
        return found

    def words(self) -> Iterator[str]:
        """What it says from then on, until it is gone."""
        with suppress(OSError):
            for line in self._lines:
                yield line.decode().strip()

    def tell(self, word: str, **facts: Any) -> None:
        """Does not wait: one that does not listen is about to go, or gone."""
        with suppress(OSError):
            self._control.send(json.dumps({"word": word, **facts}).encode() + b"\n", socket.MSG_DONTWAIT)


class Worker(Server):
    """Ends when its supervisor says so, and tells it that the event loop turns and the engine serves."""

    supervisor: Supervisor
    lost = 0  # processes before this one, in its place
    hurry = False  # no time to be seen draining

    @property
    def hurried(self) -> bool:
        return self.hurry

    def tell_started(self, sockets: list[socket.socket]) -> None:
        state: Any = self.config.app
        state.state.metrics.processes_lost.inc(self.lost)
        self.supervisor.tell("ready")

    async def on_tick(self, counter: int) -> bool:
        state: Any = self.config.app
        engine: Engine = state.state.engine
        if counter % ALIVE_TICKS == 0 and engine.alive:
            self.supervisor.tell("alive")
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # what is under way is not waited for, as when a second signal ends one process
            os._exit(1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signals are for the supervisor."""

    def listen(self, orphaned: threading.Event) -> None:
        """Does what the supervisor says. One that is gone, whatever ended it, lets this process drain, too."""
        for word in self.supervisor.words():
            self.hurry |= word == "hurry"
            self.force_exit |= word == "cut"
            self.should_exit = True
        if not self.should_exit:
            orphaned.set()
        self.should_exit = True


def main(descriptor: int) -> None:
    """Serves what the supervisor at the other end of a socket says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor(socket.socket(fileno=descriptor))
    order = supervisor.order()
    os.environ.pop(PREFIX + "CONFIG", None)  # all is told: what becomes of the file is for the next start
    settings = Settings(**order["settings"])
    shared = Shared(Path(order["folder"]), order["index"], settings.processes)
    if not settings.decoder_processes:
        take_prints()
    logging.config.dictConfig(configuration(settings, os.getpid()))
    logging.captureWarnings(settings.log_format == "json")
    keep_little()
    held = hold(shared.folder)
    exposition.write_to(shared)
    try:
        bundles = load_all(settings, device_of(settings.device, shared.index))
    except user_errors() as error:
        supervisor.tell("failed", message=told(error), exit_code=exit_code(error))
        return
    app = create_app(settings, *bundles, shared=shared)
    del bundles  # whoever unloads one means its memory
    server = Worker(configured(app, settings))
    server.supervisor, server.lost = supervisor, order["lost"]
    orphaned = threading.Event()
    threading.Thread(target=server.listen, args=[orphaned], name="listen to supervisor", daemon=True).start()
    server.run([socket.socket(fileno=listener) for listener in order["listeners"]])
    if orphaned.is_set():
        os.close(held)
        remove_left(shared.folder.parent)  # unless others are still at work


def device_of(device: str, index: int) -> str:
    """Where a process computes: where several GPUs are and none is named, the processes take them in turn."""
    device = pick_device(device)
    if device != "cuda":
        return device
    import torch

    return gpu_in_turn(index, torch.cuda.device_count())


def gpu_in_turn(index: int, count: int) -> str:
    return f"cuda:{index % count}"
