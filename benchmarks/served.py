"""A real server in a process of its own, for benchmarks that speak HTTP."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.common import ROOT

START_SECONDS = 300.0  # the first start on a machine compiles the step


@dataclass(frozen=True)
class Server:
    """`whisper-gpt serve`, ready."""

    url: str
    pid: int

    def metric(self, name: str) -> float:
        """A value of /metrics without labels; 0 when there is none."""
        found = re.search(rf"^whispergpt_{re.escape(name)} (\S+)$", httpx.get(self.url + "/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    def resident_bytes(self) -> int:
        """Memory that the process holds now (Linux)."""
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.M)
        assert found, "this system does not tell a process's memory"
        return int(found[1]) * 1024


@contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[Server]:
    """Starts a server on a free port, and ends it afterwards. Raises RuntimeError with what it says when it fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERGPT_")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--bundle", str(bundle), *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
        )
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        try:
            end = time.monotonic() + START_SECONDS
            while not _ready(server):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start:\n{log.read()}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(server: Server) -> bool:
    try:
        return httpx.get(server.url + "/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
