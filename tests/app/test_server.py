"""What only a socket shows: a real process, started by the command, and clients that break off."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.bundle import random_bundle, save_bundle


class Server:
    """`whisper-gpt serve` in a process of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERGPT_")}
        command = "from app.cli import main; main()"
        self.log = (folder.parent / f"log-{self.port}").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", str(self.port), "--bundle", str(folder), *flags],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        end = time.monotonic() + 60
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    save_bundle(random_bundle(), folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder, "--queue", "0", "--slots", "1", "--max-seconds", "1000", "--max-upload-mib", "1")
    yield running
    running.close()


def test_it_serves(server: Server, clip: bytes) -> None:
    server.works(clip)


def test_leaving_in_the_middle_of_the_upload(server: Server, clip: bytes) -> None:
    """The server has one place, so the next request shows that it is free again."""
    before = server.metric('client_disconnects_total{stage="upload"}')
    request = server.form("/continue", clip)
    with server.connect() as client:
        client.sendall(request[: len(request) // 2])
        server.until("requests_waiting", 1)
        refused = server.client.post("/continue", files={"file": ("a", clip)})
        assert refused.status_code == 429
    server.until('client_disconnects_total{stage="upload"}', before + 1)
    server.works(clip)


def test_leaving_in_the_middle_of_the_work(server: Server, clip: bytes) -> None:
    before = server.metric('client_disconnects_total{stage="generate"}')
    with server.connect() as client:
        client.sendall(server.form("/continue", clip, seconds="900"))
        server.until("requests_running", 1)
    server.until('client_disconnects_total{stage="generate"}', before + 1)
    server.works(clip)


def test_an_upload_that_is_too_large_is_told_so(server: Server, clip: bytes) -> None:
    """In chunks, with no length told: the answer comes while the client still sends."""
    head = (
        b"POST /continue HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: multipart/form-data; boundary=q\r\n\r\n"
    )
    start = b'--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    sent = 0
    with server.connect() as client:
        client.sendall(head + b"%x\r\n%s\r\n" % (len(start), start))
        while not select.select([client], [], [], 0)[0]:
            client.sendall(b"10000\r\n" + bytes(65_536) + b"\r\n")
            sent += 65_536
            assert sent < 40_000_000
        answer = client.recv(4096)
        while b"}" not in answer:  # head and body may come one after the other
            answer += client.recv(4096)
        assert b" 413 " in answer.splitlines()[0]
        assert b"file_too_large" in answer
        server.works(clip)  # the only place is free while this client could still send


def test_broken_http(server: Server, clip: bytes) -> None:
    for noise in (
        b"\x16\x03\x01\x02\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /continue HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with server.connect() as client:
            client.sendall(noise)
    server.works(clip)


def test_a_term_signal_ends_it_after_the_work_in_hand(folder: Path, clip: bytes) -> None:
    server = Server(folder, "--drain-seconds", "20")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="3"))
            server.until("requests_running", 1)
            server.process.send_signal(signal.SIGTERM)
            answer = b""
            while block := client.recv(65_536):
                answer += block
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        assert len(json.loads(body)["choices"][0]["tokens"]) == 225
        assert server.process.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in server.output()
    finally:
        server.close()


def test_a_term_signal_cuts_what_takes_too_long(folder: Path, clip: bytes) -> None:
    server = Server(folder, "--drain-seconds", "1", "--max-seconds", "1000")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="900"))
            server.until("requests_running", 1)
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(20)
            assert time.monotonic() - started < 10
    finally:
        server.close()


def test_loopback_only_by_default() -> None:
    from app.settings import Settings

    host: Any = Settings.model_fields["host"].default
    assert host == "127.0.0.1"
