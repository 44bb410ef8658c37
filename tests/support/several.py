"""A server of several processes, each of which can be spoken to alone; and processes that only talk like them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.cli.supervisor import Start
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

    def folders(self) -> list[str]:
        """What servers have in shared memory."""
        return sorted(path.name for path in Path("/dev/shm").glob("whispergpt-*"))


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
