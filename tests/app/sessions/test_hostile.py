"""Clients of a session that mean harm, over real sockets: what each is told, and that the server has nothing of it."""

import json
import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed.hostile import BINARY, CLOSE, PING, TEXT, UPGRADE, frame, said
from tests.support.process import Server

SESSIONS, IDLE_SECONDS = 3, 10
PCM = bytes(48_000)  # a second
LONG = {"seconds": 900, "n": 2}
OPCODE_CLOSE, OPCODE_PONG = 8, 10


@pytest.fixture(scope="module")
def server(saved_bundle: Path) -> Iterator[Server]:
    flags = ["--slots", "2", "--threads", "1", "--queue", "4", "--max-sessions", str(SESSIONS), "--max-seconds", "1000",
             "--send-timeout-seconds", "1", "--head-timeout-seconds", "2", "--session-idle-seconds",
             str(IDLE_SECONDS)]  # fmt: skip
    running = Server(saved_bundle, *flags)
    yield running
    running.close()


class Client:
    """A session's socket; events and what closes it, as they come."""

    def __init__(self, server: Server, receives: int | None = None) -> None:
        self.socket = socket.socket()
        if receives is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.sendall(UPGRADE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert b" 101 " in head, head

    def send(self, *parts: bytes) -> None:
        """As far as the server takes them."""
        with suppress(OSError):
            for part in parts:
                self.socket.sendall(part)

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

    def frame(self) -> tuple[int, bytes]:
        """The server's next one: opcode, payload."""
        first, length = self._take(2)
        if length > 125:
            length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
        return first & 15, self._take(length)

    def told(self) -> str | int | None:
        """The code of the first error that it is told, the number with which it is closed, or None: just cut."""
        with suppress(ConnectionError):
            while True:
                opcode, payload = self.frame()
                if opcode == OPCODE_CLOSE:
                    return int.from_bytes(payload[:2], "big")
                if opcode == TEXT and (event := json.loads(payload))["type"] == "error":
                    return str(event["error"]["code"])
        return None

    def leave(self, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def free(server: Server, clip: bytes) -> None:
    """No session is left, and the server works."""
    end = time.monotonic() + 60
    while server.metric("sessions") or server.metric("slots_used"):
        assert time.monotonic() < end, server.output()
        time.sleep(0.02)
    server.until_free()
    server.works(clip)
    assert "Traceback" not in server.output(), server.output()[-4000:]


def resident_mib(server: Server) -> float:
    found = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


NOISE: dict[str, tuple[bytes, Any]] = {
    "no mask": (frame(TEXT, b"{}", masked=False), 1002),
    "no such opcode": (frame(11, b"x"), 1002),
    "a ping of 200 bytes": (frame(PING, b"x" * 200), 1002),
    "a ping in pieces": (frame(PING, b"x", last=False), 1002),
    "a close of one byte": (frame(CLOSE, b"x"), 1002),
    "a piece of nothing": (frame(0, b"x"), 1002),
    "a message within another": (frame(TEXT, b"{", last=False) * 2, 1002),
    "a terabyte, announced": (frame(BINARY, length=2**40), 1009),
    "two megabytes": (frame(BINARY, bytes(2**21)), 1009),
    "two megabytes in pieces": (frame(BINARY, bytes(2**20), last=False) + frame(0, bytes(2**20)), 1009),
    "pieces without number": (frame(BINARY, b"", last=False) + frame(0, b"", last=False) * 5_000, 1009),
    "no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "no JSON": (frame(TEXT, b"{"), "invalid_parameter"),
    "deep JSON": (frame(TEXT, b"[" * 200_000), "invalid_parameter"),
    "null": (frame(TEXT, b"null"), "invalid_parameter"),
    "half a sample": (frame(BINARY, b"odd"), "audio_invalid"),
    "no base64": (said("input_audio_buffer.append", audio="%"), "audio_invalid"),
    "no number": (said("session.update", session={"seconds": float("nan")}), "invalid_parameter"),
    "an endless one": (said("session.update", session={"seconds": 1e309}), "invalid_parameter"),
    "nothing to commit": (said("input_audio_buffer.commit"), "audio_too_short"),
    "nothing to go on from": (said("response.create"), "invalid_parameter"),
    "too long": (frame(BINARY, bytes(2**20 - 64)) * 4, "audio_too_long"),
}


@pytest.mark.parametrize("kind", NOISE)
def test_what_breaks_the_rules_is_told_so(server: Server, clip: bytes, kind: str) -> None:
    """Those of the protocol end the session, those of the events do not."""
    noise, code = NOISE[kind]
    client = Client(server)
    client.send(noise)
    assert client.told() == code
    if isinstance(code, str):
        client.send(said("response.cancel"), said("session.update", session={"n": 0}))
        while (again := client.told()) == code == "audio_too_long":
            pass
        assert again == "invalid_parameter", "it goes on"
    client.leave()
    free(server, clip)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 100))])
def test_noise_is_no_fault(server: Server, clip: bytes, seed: int) -> None:
    """Bytes, and frames and events with some of them changed: told something, or cut, and never a bug."""
    rng = random.Random(seed)
    good = [frame(BINARY, PCM), said("input_audio_buffer.commit"), said("response.create", response={"seconds": 0.1})]
    for _ in range(20 if seed < 4 else 5):
        sent = bytearray(b"".join(good) if rng.random() < 0.8 else rng.randbytes(3_000))
        for _ in range(rng.choice([1, 3, 20])):
            sent[rng.choice([rng.randrange(12), rng.randrange(len(sent)), -rng.randrange(1, 160)])] = rng.randrange(256)
        client = Client(server)
        client.send(bytes(sent), frame(CLOSE, b"\x03\xe8"))
        said_of_it = client.told()
        assert said_of_it != "internal_error", sent[:40]
        client.leave(reset=rng.random() < 0.5)
        end = time.monotonic() + 30
        while server.metric("sessions") >= SESSIONS - 1:
            assert time.monotonic() < end
    free(server, clip)


def test_pings_that_nobody_reads_the_answers_of_take_no_memory(server: Server, clip: bytes) -> None:
    """50 MB of them, and as much in answers."""
    client = Client(server, receives=4_096)
    client.socket.settimeout(2)
    before = resident_mib(server)
    flood = frame(PING, b"x" * 125) * 8_000
    client.send(*[flood] * 48)
    assert resident_mib(server) < before + 25
    assert server.client.get("/livez").status_code == 200
    client.leave(reset=True)
    free(server, clip)


def test_a_ping_is_answered(server: Server, clip: bytes) -> None:
    client = Client(server)
    client.send(frame(PING, b"are you there"))
    while (got := client.frame())[0] == TEXT:
        pass
    assert got == (OPCODE_PONG, b"are you there")
    client.leave()
    free(server, clip)


def test_empty_messages_keep_nobody_waiting(server: Server, clip: bytes) -> None:
    client = Client(server)
    client.send(*[frame(BINARY) * 5_000] * 4, *[frame(PING) * 5_000] * 4)
    server.works(clip)
    client.send(frame(TEXT, b"{"))
    assert client.told() == "invalid_parameter"
    client.leave()
    free(server, clip)


def _unread(server: Server) -> Client:
    client = Client(server, receives=4_096)
    made = server.metric("generated_tokens_total")
    client.send(frame(BINARY, PCM), said("input_audio_buffer.commit"), said("response.create", response=LONG))
    server.until("generated_tokens_total", made + 10)
    return client


def _half_message(server: Server) -> Client:
    client = Client(server)
    client.send(frame(BINARY, bytes(2**19), length=2**20)[: 2**19])
    return client


def _in_the_middle(server: Server) -> Client:
    """Of reading."""
    client = Client(server)
    client.send(frame(BINARY, PCM) * 20)
    return client


STAGES: dict[str, Callable[[Server], Client]] = {
    "opened": Client, "half a message": _half_message, "listening": _in_the_middle, "unread": _unread,
}  # fmt: skip


@pytest.mark.parametrize("reset", [False, True], ids=["orderly", "reset"])
@pytest.mark.parametrize("stage", STAGES)
def test_leaving_leaves_nothing(server: Server, clip: bytes, stage: str, reset: bool) -> None:
    STAGES[stage](server).leave(reset)
    free(server, clip)


def test_who_takes_nothing_is_cut(server: Server, clip: bytes) -> None:
    """And whoever reads on goes on."""
    deaf = _unread(server)
    server.until_free()  # after `send_timeout_seconds`, though its client has not left
    free(server, clip)
    deaf.leave()


@pytest.mark.slow
def test_who_crawls_says_nothing(server: Server, clip: bytes) -> None:
    """A byte at a time of a message is silence: the session ends as if there were none."""
    client = _half_message(server)
    client.socket.settimeout(0.5)
    began = time.monotonic()
    while time.monotonic() < began + 5 * IDLE_SECONDS:
        client.send(b"x")
        with suppress(TimeoutError):
            if client.told() == 1001:
                break
    else:
        raise AssertionError("it is still there")
    free(server, clip)
    client.leave()


def test_half_openings_keep_nobody_out(server: Server, clip: bytes) -> None:
    """They hold no place of a session, and their time is up."""
    half = [server.connect() for _ in range(4 * SESSIONS)]
    for one in half:
        one.sendall(UPGRADE[:-2])
    whole = [Client(server) for _ in range(SESSIONS)]
    one = server.connect()
    one.sendall(UPGRADE)
    assert one.recv(12).endswith(b"429"), "there are no more than so many"
    server.works(clip)
    assert all(b" 408 " in client.recv(200) for client in half)
    for client in (*half, one):
        client.close()
    for session in whole:
        session.leave()
    free(server, clip)
