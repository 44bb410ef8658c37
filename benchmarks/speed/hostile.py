"""Clients that do harm, by mistake or on purpose: what each sends, how it behaves, and what it may be answered.

Visit i is a function of i. Each has a connection of its own. Used by `benchmarks.speed.soak` and by the tests.
"""

import asyncio
import io
import json
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import numpy as np
import soundfile

from benchmarks.speed.requests_memory import FILES, recording

LEFT = "left"  # the client went before it was answered, as it wanted
CLOSED = "closed"  # the server ended the connection without a word
ANSWER_SECONDS = 60.0  # a client that waits for an answer calls the server hung after these
TYPE = "Content-Type: multipart/form-data; boundary=q\r\n"


@dataclass(frozen=True)
class Visit:
    """One hostile connection."""

    kind: str
    parts: list[bytes]  # sent one after the other
    expected: frozenset[str]  # outcomes: a status, LEFT or CLOSED
    pause: float = 0.0  # seconds between two parts
    stays: float = ANSWER_SECONDS  # seconds from its arrival; whoever gets no answer by then has LEFT
    reads: bool = True
    resets: bool = False  # goes with a reset instead of an orderly end


def form(path: str, files: list[bytes], fields: dict[str, str] | None = None) -> bytes:
    """A whole request, its connection to be closed behind the answer."""
    parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in (fields or {}).items()]
    parts += [("file", (f"clip{at}", content)) for at, content in enumerate(files)]
    request = httpx.Request("POST", f"http://test{path}", files=parts, headers={"connection": "close"})
    head = f"POST {path} HTTP/1.1\r\n".encode() + b"".join(k + b": " + v + b"\r\n" for k, v in request.headers.raw)
    return head + b"\r\n" + request.read()


def bare(head: str, body: bytes = b"") -> bytes:
    return f"{head}\r\nHost: test\r\nConnection: close\r\n".encode() + b"\r\n" + body


@cache
def bomb() -> bytes:
    """Two hours of silence: 160 kB."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 8_000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(120):
            file.write(np.zeros(8_000 * 60, np.int16))
    return out.getvalue()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The file with bytes that are changed, zeroed, left out, doubled or cut off."""
    body = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(max(len(body), 1))
        span = rng.choice([1, 4, 100, 2_000])
        match rng.randrange(6):
            case 0:
                body[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                body[at : at + span] = bytes(len(body[at : at + span]))
            case 2:
                del body[at : at + span]
            case 3:
                body[at:at] = body[at : at + span]
            case 4:
                body[at : at + span] = rng.randbytes(len(body[at : at + span]))
            case _:
                del body[max(at, 1) :]
    return bytes(body)


@cache
def file(seconds: float, form: str, rate: int) -> bytes:
    """Made once: to write an MP3 takes as long as to answer it, and both run on one machine."""
    return recording(seconds, form, rate)


def clip(rng: random.Random) -> bytes:
    """0.3 to 2 s, in any of the formats."""
    return file(rng.randrange(3, 21) / 10, *rng.choice(FILES))


def _path(rng: random.Random) -> str:
    return rng.choice(["/continue", "/score"])


def _of(*outcomes: int | str) -> frozenset[str]:
    return frozenset(map(str, outcomes))


BAD_FIELDS = [{"seconds": "-1"}, {"seconds": "nan"}, {"temperature": "1e309"}, {"top_p": "0"}, {"n": "9"},
              {"top_k": "x"}, {"response_format": "exe"}, {"nonsense": "1"}, {"seed": "1" * 400}]  # fmt: skip


def no_audio(rng: random.Random) -> Visit:
    content = rng.randbytes(rng.randrange(200_000))
    return Visit("no audio", [form(_path(rng), [content])], _of(415, 422))


def damaged_file(rng: random.Random) -> Visit:
    request = form(_path(rng), [damaged(clip(rng), rng)], {})
    return Visit("damaged file", [request], _of(200, 413, 415, 422))  # 413: a damaged rate makes it long


def bad_field(rng: random.Random) -> Visit:
    return Visit("bad field", [form("/continue", [clip(rng)], rng.choice(BAD_FIELDS))], _of(422))


def bad_form(rng: random.Random) -> Visit:
    whole = form("/score", [clip(rng)])
    head, _, body = whole.partition(b"\r\n\r\n")
    cut = body[: rng.randrange(len(body) - 8)]
    made = f"POST {_path(rng)} HTTP/1.1\r\nHost: test\r\n"
    if rng.random() < 0.5:  # a length that fits, and a form that ends too soon
        kept = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-type")).decode()
        made += f"{kept}\r\n"
    else:
        made += TYPE
    made += f"Connection: close\r\nContent-Length: {len(cut)}\r\n\r\n"
    return Visit("bad form", [made.encode() + cut], _of(400))


def no_http(rng: random.Random) -> Visit:
    noise = rng.choice([b"\x16\x03\x01\x02\0", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\0\0\r\n\r\n",
                        b"POST /continue HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                        rng.randbytes(500) + b"\r\n\r\n"])  # fmt: skip
    return Visit("no HTTP", [noise], _of(400, CLOSED))


def long_head(rng: random.Random) -> Visit:
    return Visit("long head", [b"GET / HTTP/1.1\r\nHost: test\r\na: " + b"b" * rng.randrange(70_000, 2**20)], _of(431))


def half_head(rng: random.Random) -> Visit:
    request = form("/continue", [b""])
    part = request[: rng.randrange(1, request.index(b"\r\n\r\n"))]
    return Visit("half head", [part], _of(LEFT), stays=rng.uniform(0.0, 0.3), resets=rng.random() < 0.5)


def half_body(rng: random.Random) -> Visit:
    content = rng.choice([clip(rng), file(13.0, "WAV", 44_100)])  # the latter is kept in a file
    request = form(_path(rng), [content])
    part = request[: rng.randrange(request.index(b"\r\n\r\n") + 4, len(request) - 1)]
    return Visit("half body", [part], _of(LEFT), stays=rng.uniform(0.0, 0.3), resets=rng.random() < 0.5)


def too_much(rng: random.Random) -> Visit:
    """Announced, or sent in chunks that do not end: the answer comes before."""
    head = f"POST {_path(rng)} HTTP/1.1\r\nHost: test\r\n{TYPE}Content-Length: {rng.randrange(2**28, 2**40)}\r\n\r\n"
    return Visit("too much", [head.encode() + bytes(rng.randrange(300_000))], _of(413))


def leaves(rng: random.Random) -> Visit:
    fields = {"seconds": "20", "stream": rng.choice(["true", "false"])}
    path = _path(rng)
    request = form(path, [clip(rng)], fields if path == "/continue" else {})
    return Visit("leaves", [request], _of(LEFT, 200), stays=rng.uniform(0.0, 0.4), resets=rng.random() < 0.5)


def unread(rng: random.Random) -> Visit:
    fields = {"seconds": "5", "n": "4", "stream": "true"}
    request = form("/continue", [clip(rng)], fields)
    return Visit("unread", [request], _of(LEFT), stays=rng.uniform(0.1, 0.6), reads=False, resets=rng.random() < 0.5)


def nowhere(rng: random.Random) -> Visit:
    method, path, status = rng.choice([("GET", "/nope", 404), ("POST", "/livez", 405), ("GET", "/score", 405),
                                       ("POST", "/../etc/passwd", 404), ("DELETE", "/v1/models", 405)])  # fmt: skip
    return Visit("nowhere", [bare(f"{method} {path} HTTP/1.1")], _of(status))


def many_files(rng: random.Random) -> Visit:
    return Visit("many files", [form("/score", [rng.randbytes(100)] * rng.randrange(33, 60))], _of(422))


def long_silence(rng: random.Random) -> Visit:
    return Visit("long silence", [form("/continue", [bomb()])], _of(413))


def no_time(rng: random.Random) -> Visit:
    return Visit("no time", [form("/continue", [clip(rng)], {"timeout_seconds": "0.001"})], _of(504))


def long_text(rng: random.Random) -> Visit:
    return Visit("long text", [form("/continue", [clip(rng)], {"seed": "1" * rng.randrange(17_000, 10**6)})], _of(400))


def byte_by_byte(rng: random.Random) -> Visit:
    request = form("/continue", [clip(rng)])
    parts = [request[at : at + 1] for at in range(rng.randrange(5, 40))]
    return Visit("byte by byte", parts, _of(LEFT), pause=0.01, stays=0.5)


def unknown_prompt(rng: random.Random) -> Visit:
    """Ids of nobody's, as fields and as paths."""
    name = rng.choice(["prompt-never-here", "cont-1", "x" * 9_000, "../../etc/passwd", "%00"])
    if rng.random() < 0.3:
        method, clean = rng.choice(["GET", "DELETE"]), name.replace("/", "")[:200]
        return Visit("unknown prompt", [bare(f"{method} /v1/audio/prompts/{clean} HTTP/1.1")], _of(404))
    fields = {rng.choice(["prompt", "continue_from"]): name}
    return Visit("unknown prompt", [form("/continue", [], fields | {"seconds": "0.1"})], _of(404, 422))


def bad_prompt(rng: random.Random) -> Visit:
    """Of a clip that is none, or damaged."""
    content = rng.choice([rng.randbytes(1_000), damaged(clip(rng), rng)])
    return Visit("bad prompt", [form("/v1/audio/prompts", [content])], _of(200, 413, 415, 422))


UPGRADE = (
    b"GET /v1/audio/session HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9  # RFC 6455, section 5.2


def frame(
    opcode: int, payload: bytes = b"", length: int | None = None, masked: bool = True, last: bool = True
) -> bytes:
    """A client's frame; its mask is zero. ``length``: announced, whatever the payload has."""
    size = len(payload) if length is None else length
    short = size if size < 126 else 126 if size < 65_536 else 127
    long = b"" if size < 126 else size.to_bytes(2 if size < 65_536 else 8, "big")
    return bytes([last << 7 | opcode, masked << 7 | short]) + long + bytes(4 * masked) + payload


def said(kind: str, **fields: object) -> bytes:
    """An event of a session, as a frame."""
    return frame(TEXT, json.dumps({"type": kind, **fields}).encode())


def session_noise(rng: random.Random) -> Visit:
    """Opens a session and breaks its rules: the protocol's, or the events'."""
    noise = rng.choice([
        frame(TEXT, b"{}", masked=False), frame(11, b"x"), frame(PING, b"x" * 200), frame(CLOSE, b"\x00"),
        frame(BINARY, length=2**40), frame(BINARY, bytes(2**21)), frame(TEXT, b"\xff\xfe"),
        frame(TEXT, b"[" * 100_000), frame(TEXT, b"null"), frame(BINARY, b"odd"), rng.randbytes(2_000),
        frame(TEXT, b"{", last=False) * 500, frame(PING) * 5_000, frame(BINARY) * 5_000,
        said("response.create"), said("input_audio_buffer.commit"), said("session.update", session={"seconds": 1e309}),
        said("input_audio_buffer.append", audio="no base64") * 50, said("input_audio_buffer.clear") * 500,
    ])  # fmt: skip
    stays = rng.uniform(0.1, 0.6)
    return Visit("session noise", [UPGRADE, noise], _of(101, 429, LEFT), stays=stays, resets=rng.random() < 0.5)


def session_half_open(rng: random.Random) -> Visit:
    """A part of the opening, or an opening that nothing follows."""
    part = rng.choice([UPGRADE, UPGRADE[: rng.randrange(20, len(UPGRADE) - 4)]])
    return Visit("session half open", [part], _of(101, 429, LEFT), stays=rng.uniform(0.0, 0.4), resets=True)


def session_unread(rng: random.Random) -> Visit:
    """Audio and a long response, of which nothing is taken."""
    audio = frame(BINARY, bytes(48_000))
    ask = said("response.create", response={"seconds": 20, "n": 4})
    parts = [UPGRADE, audio * rng.randrange(1, 10), said("input_audio_buffer.commit"), ask]
    stays = rng.uniform(0.1, 0.6)
    return Visit("session unread", parts, _of(LEFT), stays=stays, reads=False, resets=rng.random() < 0.5)


KINDS: list[Callable[[random.Random], Visit]] = [
    no_audio, damaged_file, damaged_file, bad_field, bad_form, no_http, long_head, half_head, half_body, too_much,
    leaves, leaves, unread, nowhere, many_files, long_silence, no_time, long_text, byte_by_byte,
    unknown_prompt, bad_prompt, session_noise, session_noise, session_half_open, session_unread,
]  # fmt: skip


def hostile(index: int) -> Visit:
    """The visit of that number."""
    rng = random.Random(f"hostile {index}")
    return rng.choice(KINDS)(rng)


@dataclass
class Guest:
    """A visit that is made."""

    visit: Visit
    answer: bytearray = field(default_factory=bytearray)

    async def call(self, port: int) -> str:
        """What became of it: a status, LEFT, CLOSED, or "hung" when no answer came though it was waited for."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return "not let in"
        try:
            async with asyncio.timeout(self.visit.stays):
                await self._send(reader, writer)
                if self.visit.reads:
                    await self._read(reader)
                else:
                    await asyncio.sleep(self.visit.stays + 1)
        except TimeoutError:
            if not self.answer:
                return LEFT if self.visit.stays < ANSWER_SECONDS else "hung"
        except OSError:
            pass  # what came before the reset is the answer
        finally:
            if self.visit.resets:
                tcp: socket.socket = writer.get_extra_info("socket")
                with suppress(OSError):  # closed already: the server was first
                    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if self.visit.resets else writer.close()
        return self.answer[9:12].decode("latin-1") if self.answer.startswith(b"HTTP/1.1 ") else CLOSED

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for part in self.visit.parts:
                writer.write(part)
                await writer.drain()
                if part == UPGRADE:  # what follows is no part of it
                    head = await reader.readuntil(b"\r\n\r\n")
                    self.answer += head if self.visit.reads else b""
                if self.visit.pause:
                    await asyncio.sleep(self.visit.pause)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it is answered before it has sent all

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(65_536):
            self.answer += piece
