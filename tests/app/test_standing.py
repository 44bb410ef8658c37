"""Who leaves, at whatever stage and however, who crawls, and what is killed: a real process stands, or starts again."""

import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import ApiError, Client
from benchmarks.speed.served import Server as Served
from benchmarks.speed.soak import State, children, state
from tests.support.process import Server
from tests.support.waiting import HANG_SECONDS, until

PERMITS = 6
STREAM = {"seconds": "900", "stream": "true"}


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(saved_bundle: Path, uploads: Path) -> Iterator[Server]:
    flags = ["--slots", "1", "--threads", "1", "--queue", str(PERMITS - 1), "--max-seconds", "1000",
             "--max-prompt-seconds", "1000", "--max-upload-mib", "30"]  # fmt: skip
    running = Server(saved_bundle, *flags, TMPDIR=str(uploads))
    yield running
    running.close()


@pytest.fixture(scope="module")
def long(to_file: Any) -> bytes:
    """1,000 s, which take a while to be read as a prompt."""
    return bytes(to_file(np.zeros(8_000 * 1_000, np.int16), 8_000, "FLAC"))


@pytest.fixture(scope="module")
def hour(to_file: Any) -> bytes:
    """58 minutes, which take a while to be decoded."""
    return bytes(to_file(np.zeros(16_000 * 60 * 58, np.int16), 16_000, "FLAC"))


def now(server: Server, uploads: Path) -> State:
    return state(Served(f"http://127.0.0.1:{server.port}", server.process.pid, server.log.fileno()), uploads, 0)


def leave(client: socket.socket, how: str) -> None:
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def busy_decoder(server: Server) -> Callable[[], bool]:
    """Tells whether a decoder has computed since."""

    def ticks() -> int:
        stats = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children(server.process.pid)
        ]
        return sum(int(one[11]) for one in stats)

    before = ticks()
    return lambda: ticks() > before + 3


def in_head(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    client = held.enter_context(server.connect())
    client.sendall(server.form("/continue", clip)[:60])
    return client


def in_upload(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    """Of a file that does not stay in memory."""
    client, request = held.enter_context(server.connect()), server.form("/score", bytes(2**23))
    client.sendall(request[: len(request) // 2])
    server.until("requests_waiting", 1)
    return client


def in_decode(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    client, computes = held.enter_context(server.connect()), busy_decoder(server)
    client.sendall(server.form("/continue", hour, prompt_start="3400"))
    until(computes)
    return client


def in_queue(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    """Behind a prompt that is read."""
    in_prefill(server, held, clip, long, hour)
    decoded = server.metric("audio_decode_seconds_count")
    client = held.enter_context(server.connect())
    client.sendall(server.form("/continue", clip))
    server.until("audio_decode_seconds_count", decoded + 1)
    return client


def in_prefill(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    client = held.enter_context(server.connect())
    client.sendall(server.form("/continue", long))
    server.until("requests_running", 1)
    return client


def in_slot(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    """Behind a stream that has the only slot."""
    in_step(server, held, clip, long, hour)
    read = server.metric("prefill_seconds_count")
    client = held.enter_context(server.connect())
    client.sendall(server.form("/continue", clip))
    server.until("prefill_seconds_count", read + 1)
    return client


def in_step(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    client = held.enter_context(server.connect())
    client.sendall(server.form("/continue", clip, **STREAM))
    client.recv(1)
    return client


def in_score(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    client = held.enter_context(server.connect())
    client.sendall(server.form("/score", long))
    server.until("requests_running", 1)
    return client


def in_prefill_to_keep(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    client = held.enter_context(server.connect())
    client.sendall(server.form("/v1/audio/prompts", long))
    server.until("requests_running", 1)
    return client


def in_step_of_kept(server: Server, held: ExitStack, clip: bytes, long: bytes, hour: bytes) -> socket.socket:
    """Of a prompt that was read before."""
    kept = server.client.post("/v1/audio/prompts", files={"file": ("a", clip)}).json()["id"]
    fields = {name: (None, value) for name, value in {**STREAM, "prompt": kept}.items()}
    request = server.client.build_request("POST", "/continue", files=fields)
    head = b"".join(name + b": " + value + b"\r\n" for name, value in request.headers.raw)
    client = held.enter_context(server.connect())
    client.sendall(b"POST /continue HTTP/1.1\r\n" + head + b"\r\n" + request.read())
    client.recv(1)
    return client


# by the stage that is told, and what is special of it
STAGES = {"head": in_head, "upload": in_upload, "decode": in_decode, "queue": in_queue, "prefill": in_prefill,
          "slot": in_slot, "step": in_step, "score": in_score, "prefill to keep": in_prefill_to_keep,
          "step of kept": in_step_of_kept}  # fmt: skip


@pytest.mark.parametrize("how", ["orderly", pytest.param("reset", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", STAGES)
def test_leaving_leaves_nothing(
    server: Server, uploads: Path, clip: bytes, long: bytes, hour: bytes, stage: str, how: str
) -> None:
    """The stage is told, and what the request held is free: descriptors, permits, slots, files, shared memory."""
    name = f'client_disconnects_total{{stage="{stage.split()[0]}"}}'
    server.works(clip)
    before, left = now(server, uploads), server.metric(name)
    with ExitStack() as others:
        leave(STAGES[stage](server, others, clip, long, hour), how)
        if stage != "head":
            server.until(name, left + 1)
    server.until_free()
    server.works(clip)
    until(lambda: not {key: more for key, more in now(server, uploads).left(before).items() if key != "threads"})
    assert "Traceback" not in server.output()


@pytest.mark.slow
def test_who_crawls_keeps_nobody_waiting(server: Server, clip: bytes) -> None:
    """A byte at a time: of bodies, more than there are permits, of heads and of answers; a good client is served."""
    request = server.form("/continue", clip)
    body = request.index(b"\r\n\r\n") + 4
    with ExitStack() as held:
        heads, bodies = ([held.enter_context(server.connect()) for _ in range(2 * PERMITS)] for _ in range(2))
        reader = held.enter_context(server.connect())
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        made = server.metric("generated_tokens_total")
        reader.sendall(server.form("/continue", clip, seconds="20", stream="true"))
        server.until("generated_tokens_total", made + 20 * 75)  # and it has taken nothing of them
        server.until_free()
        for client in bodies:
            client.sendall(request[:body])
        server.until("requests_waiting", PERMITS)
        served = 0
        for second in range(6):
            for client in heads:
                client.sendall(request[second : second + 1])
            for client in bodies:
                client.setblocking(False)
                with suppress(OSError):  # refused, or told to give way
                    client.send(request[body + second : body + second + 1])
            reader.recv(1)
            if second > 2:
                answer = server.client.post("/score", files={"file": ("a", clip)})
                assert answer.status_code == 200, answer.text
                served += 1
            time.sleep(1)
        assert served == 3
        said = Counter(client.recv(12)[-3:] for client in bodies if readable(client))
    assert said[b"429"] == PERMITS, said  # found no place
    assert said[b"408"] == 1, said  # gave way; its place is free for all three
    server.until_free()
    server.works(clip)


def readable(client: socket.socket) -> bool:
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


class Load:
    """Clients that ask again and again until they are told to stop; what they were answered."""

    def __init__(self, server: Server, clip: bytes, count: int = 6) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url, self._clip, self._stop = f"http://127.0.0.1:{server.port}", clip, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, index: int) -> None:
        rng = random.Random(index)
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                path = rng.choice(["/continue", "/score", "session"])
                if path == "session":
                    try:
                        self._talk()
                        self.outcomes["200"] += 1
                        continue
                    except ApiError:
                        self.outcomes["cut"] += 1
                        return
                fields = {"seconds": "1", "stream": rng.choice(["true", "false"])} if path == "/continue" else {}
                try:
                    answer = client.post(path, files={"file": ("a", self._clip)}, data=fields)
                    told = "" if answer.status_code == 200 else f" {answer.json()['error']['message'][:40]}"
                    self.outcomes[f"{answer.status_code}{told}"] += 1
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    self.outcomes["cut"] += 1
                    return
                except httpx.TimeoutException:
                    self.outcomes["hung"] += 1
                    return

    def _talk(self) -> None:
        """A session with one response."""
        with Client(self._url).session() as session:
            session.append(bytes(24_000))
            session.commit()
            session.respond(seconds=1)
            for event in session:
                assert event["type"] != "error", event
                if event["type"] == "response.done":
                    return

    def stop(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"
        return self.outcomes


@pytest.mark.slow
def test_decoders_that_are_killed_under_load(saved_bundle: Path, clip: bytes, uploads: Path) -> None:
    """Each costs one request at most, which is told so; the others are answered, and the pool is whole again."""
    server = Server(saved_bundle, "--slots", "4", TMPDIR=str(uploads))
    try:
        until(lambda: server.metric("decoders") == 2)
        load = Load(server, clip)
        for _ in range(10):
            time.sleep(0.5)
            for pid in children(server.process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
        outcomes = load.stop()
        assert outcomes.pop("200") > 10
        assert all(name.startswith("500 the decoder of this file ended") for name in outcomes), outcomes
        assert sum(outcomes.values()) <= 10
        until(lambda: server.metric("decoders") == 2)
        for _ in range(4):
            server.works(clip)
    finally:
        server.close()


@pytest.mark.slow
def test_a_server_that_is_killed_under_load(saved_bundle: Path, clip: bytes, tmp_path: Path) -> None:
    """Its clients see their connections end, none of its processes or files is left, and its port is free."""
    server = Server(saved_bundle, "--slots", "4", TMPDIR=str(tmp_path))
    try:
        shared = sorted(Path("/dev/shm").iterdir())
        load = Load(server, clip)
        half = server.connect()
        half.sendall(server.form("/score", bytes(2**23))[: 2**22])  # a file for an upload is open
        server.until("generated_tokens_total", 500)
        decoders = children(server.process.pid)
        server.process.kill()
        server.process.wait(HANG_SECONDS)
        outcomes = load.stop()
        half.close()
        assert outcomes["cut"] == 6 and not outcomes["hung"], outcomes
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in decoders))
        assert len(decoders) == 2 and not list(tmp_path.iterdir())
        assert set(Path("/dev/shm").iterdir()) <= set(shared)
        again = Server(saved_bundle, "--slots", "4", port=server.port, TMPDIR=str(tmp_path))
        again.works(clip)
        again.close()
    finally:
        server.close()
