"""A process that decodes uploads for the server: what a crash of libav or libsndfile takes with it is this alone.

It speaks over one socket, one request at a time: a line of JSON comes with the upload's descriptor, a line of JSON goes
back with that of the samples, float32 in memory that both share. A byte that comes in between means: stop. The end of
the socket is the end of the process, so none outlives its server.
"""

import fcntl
import json
import os
import resource
import select
import signal
import socket
import tempfile
import traceback
from contextlib import closing
from dataclasses import asdict
from typing import Any

from app.audio.decode import decode_to
from app.errors import AudioInvalid, ServiceError

GRACE_SECONDS = 2.0  # beyond a request's deadline, before the process is ended from within
LINE_BYTES = 65_536


def read_line(sock: socket.socket) -> tuple[bytes, list[int]]:
    """A line and the descriptors that came with it; an empty one at the end of the socket."""
    line, fds = b"", []
    while not line.endswith(b"\n"):
        part, new, _, _ = socket.recv_fds(sock, LINE_BYTES, 1)
        fds += new
        if not part:
            return b"", fds
        line += part
    return line, fds


def _shared() -> int:
    """A descriptor of memory; of a file without a name where the system has no such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("samples", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _decoded(sock: socket.socket, fd: int, order: dict[str, Any], samples: int) -> dict[str, Any]:
    """The answer to an order; writes the samples."""

    def stop() -> bool:
        return bool(select.select([sock], [], [], 0)[0])  # a byte, or the end of the server

    with os.fdopen(fd, "rb") as file, os.fdopen(os.dup(samples), "wb") as out:
        try:
            warnings = decode_to(
                lambda piece: out.write(piece.astype("<f4", copy=False).data), file, stop=stop, **order
            )
        except MemoryError:
            raise AudioInvalid("the file takes more memory to decode than it may", "file") from None
    return {"warnings": [asdict(warning) for warning in warnings]}


def serve(sock: socket.socket, memory_bytes: int) -> None:
    """Answers orders until the socket ends."""
    for terminal in (signal.SIGINT, signal.SIGTERM):  # sent to all of a service: the server ends when it is done
        signal.signal(terminal, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process wherever it is, in C too
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock.sendall(b"ready\n")
    while (read := read_line(sock))[0]:
        order = json.loads(read[0].lstrip(b"x"))  # a stop that came too late
        signal.setitimer(signal.ITIMER_REAL, max(order.pop("seconds"), 0.0) + GRACE_SECONDS)
        samples = _shared()
        try:
            answer = _decoded(sock, read[1][0], order, samples)
            if hasattr(fcntl, "F_ADD_SEALS") and hasattr(os, "memfd_create"):  # a map of it must not lose its end
                fcntl.fcntl(samples, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except ServiceError as error:
            answer = {"error": type(error).__name__, "message": error.message, "param": error.param}
        except Exception:  # the server logs it
            answer = {"bug": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_REAL, 0)
        socket.send_fds(sock, [json.dumps(answer).encode() + b"\n"], [samples])
        os.close(samples)


def main(fd: int, memory_bytes: int) -> None:
    with closing(socket.socket(fileno=fd)) as sock:
        serve(sock, memory_bytes)
