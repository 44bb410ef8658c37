"""A few processes that decode uploads (`app.audio.decoder`), renewed after some files, and whenever one is lost."""

import json
import logging
import mmap
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from app.audio.decode import DecodedAudio
from app.audio.decoder import GRACE_SECONDS, read_line
from app.audio.notices import Notice
from app.audio.samples import Samples
from app.errors import (
    AudioInvalid,
    AudioTooLong,
    AudioTooShort,
    DeadlinePassed,
    DecoderLost,
    UnsupportedFormat,
)  # fmt: skip

FILES = 256  # before a process is replaced, and with it what the libraries have leaked or cut up
MEMORY_BYTES = 1 << 30  # of a process's address space: 205 MiB are its code, and a file takes a few MiB
START_SECONDS = 30.0
LOOK_SECONDS = 0.05  # between two looks at whether the request still wants its samples
END_SECONDS = 2.0
KEPT = {  # glibc: blocks of samples are kept for the next ones; to be mapped anew each time doubled the cost
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}  # fmt: skip
ERRORS = {one.__name__: one for one in (UnsupportedFormat, AudioInvalid, AudioTooLong, AudioTooShort, DeadlinePassed)}
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from app.audio.decoder import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
log = logging.getLogger("whispergpt")


class Lost(Exception):
    """The process ended, or had to be ended, over a file."""


class Decoder:
    """One process. Not for two threads at a time."""

    def __init__(self, memory_bytes: int) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(memory_bytes), json.dumps(sys.path)]
            one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *arguments],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **KEPT, **one_thread},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries print what they think of files; errors come by the socket
                start_new_session=True,  # a terminal's Ctrl-C is the server's
            )
        self.files = 0

    def wait_until_ready(self) -> bool:
        """Whether it came up."""
        try:
            ready, _, _ = select.select([self._sock], [], [], START_SECONDS)
            return bool(ready) and read_line(self._sock)[0] == b"ready\n"
        except (OSError, ValueError):  # it ended, or was ended
            return False

    def _send(self, data: bytes, fds: list[int]) -> None:
        try:
            socket.send_fds(self._sock, [data], fds)
        except OSError as error:
            raise Lost from error

    def decode(
        self, file: BinaryIO, until: float, stop: Callable[[], bool], **order: float | None
    ) -> tuple[dict[str, Any], Samples]:
        """The process's answer, and the samples. Raises Lost."""
        self.files += 1
        file.flush()
        self._send(json.dumps({**order, "seconds": until - time.monotonic()}).encode() + b"\n", [file.fileno()])
        asked = 0.0
        while not select.select([self._sock], [], [], LOOK_SECONDS)[0]:
            now = time.monotonic()
            if not asked and (stop() or now > until):
                asked = now
                self._send(b"x", [])
            if asked and now > asked + GRACE_SECONDS:
                raise Lost
        try:
            line, fds = read_line(self._sock)
        except OSError as error:
            raise Lost from error
        try:
            if not line or not fds:
                raise Lost
            size = os.fstat(fds[0]).st_size
            if not size:
                return json.loads(line), np.zeros(0, np.float32)
            # A private map: torch wants to be able to write, and nobody else sees it. It lives as long as its array.
            return json.loads(line), np.frombuffer(mmap.mmap(fds[0], size, access=mmap.ACCESS_COPY), "<f4")
        finally:
            for fd in fds:
                os.close(fd)

    def end(self, seconds: float = 0.0) -> None:
        """Closes the socket, upon which an idle process ends; kills it when it has not in so many seconds."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.process.wait()


class Decoders:
    """So many processes, each with one file at a time.

    Args:
        count: processes.
        files: that each decodes before another takes its place.
        memory_bytes: of each one's address space.
        lost: told of each that ended unexpectedly: over a "file", at "rest", or at its "start".
        changed: told how many there are, whenever that changes.
    """

    def __init__(
        self,
        count: int,
        files: int = FILES,
        memory_bytes: int = MEMORY_BYTES,
        lost: Callable[[str], None] = lambda when: None,
        changed: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._lost, self._changed = lost, changed
        self._files, self._memory_bytes = files, memory_bytes
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._all: set[Decoder] = set()
        self._lock = threading.Lock()
        self._closed = False
        for _ in range(count):
            self._begin()

    def _begin(self) -> None:
        """Starts a process; waits for it on a thread."""
        threading.Thread(target=self._start, name="start decoder", daemon=True).start()

    def _start(self) -> None:
        wait = 0.1
        while not self._closed:
            decoder = Decoder(self._memory_bytes)
            with self._lock:
                self._all.add(decoder)
                self._changed(len(self._all))
            if decoder.wait_until_ready() and not self._closed:
                self._free.put(decoder)
                return
            self._forget(decoder)
            if not self._closed:
                self._lost("start")
                log.error("a decoder did not start; the next try is in %.1f s", wait)
                time.sleep(wait)
                wait = min(2 * wait, 10.0)

    def _forget(self, decoder: Decoder, seconds: float = 0.0) -> None:
        decoder.end(seconds)
        with self._lock:
            self._all.discard(decoder)
            self._changed(len(self._all))

    def pids(self) -> list[int]:
        """Of the processes that are there."""
        with self._lock:
            return sorted(decoder.process.pid for decoder in self._all)

    def decode(
        self,
        file: BinaryIO,
        max_seconds: float,
        start_seconds: float,
        end_seconds: float | None,
        until: float,
        stop: Callable[[], bool],
    ) -> DecodedAudio:
        """What `app.audio.decode.decode` makes of an upload, by one of the processes, until ``until``.

        Raises what that raises; DecoderLost when the process did not survive the file.
        """
        decoder = self._take(until, stop)
        try:
            answer, samples = decoder.decode(
                file, until, stop, max_seconds=max_seconds, start_seconds=start_seconds, end_seconds=end_seconds
            )
        except (Lost, ValueError):  # also words that are no JSON
            self._begin()
            self._forget(decoder)
            if stop() or time.monotonic() > until:
                raise DeadlinePassed("the file could not be decoded in time") from None
            self._lost("file")
            log.error("a decoder was lost over a file: exit status %s", decoder.process.returncode)
            raise DecoderLost("the decoder of this file ended unexpectedly: send it again, or as FLAC") from None
        if decoder.files < self._files:
            self._free.put(decoder)
        else:
            self._begin()
            self._forget(decoder, END_SECONDS)
        if "bug" in answer:
            raise RuntimeError(f"in a decoder: {answer['bug']}")
        if "error" in answer:
            raise ERRORS[answer["error"]](answer["message"], answer["param"])
        return DecodedAudio(samples, tuple(Notice(**warning) for warning in answer["warnings"]))

    def _take(self, until: float, stop: Callable[[], bool]) -> Decoder:
        """A free process that lives. Raises DeadlinePassed."""
        while not stop() and time.monotonic() < until:
            with suppress(queue.Empty):
                decoder = self._free.get(timeout=LOOK_SECONDS)
                if decoder.process.poll() is None:
                    return decoder
                self._lost("rest")
                log.error("a decoder was lost at rest: exit status %s", decoder.process.returncode)
                self._begin()
                self._forget(decoder)
        raise DeadlinePassed("the file waited to be decoded until the request's time was up")

    def close(self) -> None:
        """Ends all processes."""
        self._closed = True
        with self._lock:
            left = list(self._all)
        for decoder in left:
            self._forget(decoder, END_SECONDS)
