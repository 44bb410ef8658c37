"""The server as a process of its own, started by its command."""

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.live import free_port
from tests.support.waiting import HANG_SECONDS, until


class Server:
    """`whisper-gpt serve` in a process of its own."""

    def __init__(self, folder: Path, *flags: str, port: int = 0, **more: str) -> None:
        """Its environment has no setting but those in ``more``."""
        self.port = port or free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERGPT_")} | more
        command = "from app.cli.main import main; main()"
        self.log = (folder.parent / f"log-{self.port}").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", str(self.port), "--bundle", str(folder),
             "--drain-grace-seconds", "0", *flags],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=HANG_SECONDS)
        until(self._answers, self.output, 0.1)

    def _answers(self) -> bool:
        """Whether it is ready; it may not end before."""
        assert self.process.poll() is None, self.output()
        with suppress(httpx.TransportError):
            assert self.client.get("/readyz").status_code == 200
            return True
        return False

    def output(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def metric(self, name: str) -> float:
        found = re.search(rf"^whispergpt_{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    def until(self, name: str, at_least: float) -> None:
        until(lambda: self.metric(name) >= at_least, self.output, 0.02)

    def until_free(self) -> None:
        until(lambda: not self.metric("requests_waiting") + self.metric("requests_running"), self.output, 0.02)

    def form(self, path: str, clip: bytes, **fields: str) -> bytes:
        """The bytes of a request."""
        request = self.client.build_request("POST", path, files={"file": ("a.flac", clip)}, data=fields)
        head = f"POST {path} HTTP/1.1\r\n".encode() + b"".join(k + b": " + v + b"\r\n" for k, v in request.headers.raw)
        return head + b"\r\n" + request.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_SECONDS)

    def works(self, clip: bytes) -> None:
        answer = self.client.post("/continue", files={"file": ("a", clip)}, data={"seconds": "0.2"})
        assert answer.status_code == 200, answer.text
        assert self.metric("requests_waiting") == self.metric("requests_running") == 0

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(HANG_SECONDS)
        self.log.close()
