"""The server as a process of its own, started by its command."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.live import free_port


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
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        end = time.monotonic() + 300  # the first start compiles the step
        while True:
            try:
                assert self.client.get("/readyz").status_code == 200
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.output()
                assert time.monotonic() < end, self.output()
                time.sleep(0.1)

    def output(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def metric(self, name: str) -> float:
        found = re.search(rf"^whispergpt_{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    def until(self, name: str, at_least: float) -> None:
        end = time.monotonic() + 15
        while self.metric(name) < at_least:
            assert time.monotonic() < end, self.output()
            time.sleep(0.02)

    def until_free(self) -> None:
        end = time.monotonic() + 15
        while self.metric("requests_waiting") or self.metric("requests_running"):
            assert time.monotonic() < end, self.output()
            time.sleep(0.02)

    def form(self, path: str, clip: bytes, **fields: str) -> bytes:
        """The bytes of a request."""
        request = self.client.build_request("POST", path, files={"file": ("a.flac", clip)}, data=fields)
        head = f"POST {path} HTTP/1.1\r\n".encode() + b"".join(k + b": " + v + b"\r\n" for k, v in request.headers.raw)
        return head + b"\r\n" + request.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def works(self, clip: bytes) -> None:
        answer = self.client.post("/continue", files={"file": ("a", clip)}, data={"seconds": "0.2"})
        assert answer.status_code == 200, answer.text
        assert self.metric("requests_waiting") == self.metric("requests_running") == 0

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.log.close()
