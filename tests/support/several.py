"""A server of several processes, each of which can be spoken to alone; and processes that only talk like them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.cli.supervisor import Start
from app.shared import MEMORY, PREFIX, Workers
from tests.support.process import Server
from tests.support.waiting import HANG_SECONDS, until

READY = r"ready: \d+ processes serve on \S+ \(([\d, ]+)\)"


class SeveralProcesses(Server):
    """`whisper-gpt serve --processes N`, all of which serve."""

    def __init__(self, folder: Path, count: int, *flags: str, **more: str) -> None:
        super().__init__(folder, "--processes", str(count), "--threads", "1", *flags, port=0, **more)
        until(lambda: re.search(READY, self.output()), self.output, 0.05)

    @property
    def pids(self) -> list[int]:
        """Of those that run now, in no order."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    @contextmanager
    def only(self, pid: int) -> Iterator[httpx.Client]:
        """A client of one process: the others are stopped meanwhile, and answer nothing."""
        with ExitStack() as stopped:
            for other in self.pids:
                if other != pid:
                    os.kill(other, signal.SIGSTOP)
                    stopped.callback(os.kill, other, signal.SIGCONT)
            yield stopped.enter_context(httpx.Client(base_url=self.client.base_url, timeout=HANG_SECONDS))

    def folder(self) -> Path:
        """What its processes share."""
        roots = (MEMORY, Path(tempfile.gettempdir()))
        found = [path for root in roots for path in root.glob(f"{PREFIX}*") if path.is_dir()]
        return next(path for path in found if set(Workers(path / "workers.json").get()["pids"]) & set(self.pids))


def begin(code: str) -> Start:
    """Starts processes that run this, with `say` for their words and `order` for what they were told."""
    head = (
        "import json, os, signal, socket, sys, time\ncontrol = socket.socket(fileno=int(sys.argv[1]))\n"
        "lines = control.makefile('rb')\norder = json.loads(lines.readline())\n"
        "def say(word, **facts): control.sendall(json.dumps({'word': word, **facts}).encode() + b'\\n')\n"
    )

    def start(order: dict[str, Any]) -> Any:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", head + code, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        ours.sendall(json.dumps(order).encode() + b"\n")
        ours.setblocking(False)
        return process, ours

    return start
