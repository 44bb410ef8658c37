"""A real server in a process of its own, for benchmarks that speak HTTP."""

import math
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
    log: int  # descriptor of the file that it writes to

    def said(self) -> str:
        """All that it has written so far: warnings and errors."""
        return os.pread(self.log, os.fstat(self.log).st_size, 0).decode("utf-8", "replace")

    def metric(self, name: str) -> float:
        """A value of /metrics without labels. Raises KeyError when there is none."""
        found = re.search(rf"^whispergpt_{re.escape(name)} (\S+)$", httpx.get(self.url + "/metrics").text, re.M)
        if not found:
            raise KeyError(name)
        return float(found[1])

    def histogram(self, name: str) -> dict[float, float]:
        """Observations so far, by the upper bound of their bucket (cumulative; the last bound is infinite)."""
        pattern = rf'^whispergpt_{re.escape(name)}_bucket{{le="(\S+)"}} (\S+)$'
        found = re.findall(pattern, httpx.get(self.url + "/metrics").text, re.M)
        if not found:
            raise KeyError(name)
        return {float(bound): float(count) for bound, count in found}

    def resident_bytes(self) -> int:
        """Memory that the process holds now (Linux)."""
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.M)
        assert found, "this system does not tell a process's memory"
        return int(found[1]) * 1024


def share_below(before: dict[float, float], after: dict[float, float], bound: float) -> float | None:
    """Of the observations between two readings of a histogram, the share up to one of its bounds; None without any."""
    whole = after[math.inf] - before[math.inf]
    return (after[bound] - before[bound]) / whole if whole else None


@contextmanager
def serving(bundle: Path, *flags: str, **more: str) -> Iterator[Server]:
    """Starts a server on a free port, and ends it afterwards. Raises RuntimeError with what it says when it fails.

    ``more`` is added to its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERGPT_")}
    environment |= {"PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port), "--bundle", str(bundle), *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
        )
        server = Server(f"http://127.0.0.1:{port}", process.pid, log.fileno())
        try:
            end = time.monotonic() + START_SECONDS
            while not _ready(server):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start:\n{server.said()}")
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
