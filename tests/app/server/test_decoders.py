"""Uploads are decoded by processes of their own: what one of them loses is one request, and another takes its place."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import pytest

from app.audio import decoder
from app.audio.decode import DecodedAudio, decode
from app.errors import (
    AudioInvalid,
    AudioTooLong,
    AudioTooShort,
    DeadlinePassed,
    DecoderLost,
    ServiceError,
    UnsupportedFormat,
)
from app.server.decoders import MEMORY_BYTES, Decoders
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are handed over on Unix alone")


@contextmanager
def running(count: int = 2, files: int = 1_000, memory_bytes: int = MEMORY_BYTES, **options: Any) -> Iterator[Decoders]:
    decoders = Decoders(count, files, memory_bytes, **options)
    try:
        yield decoders
    finally:
        decoders.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    with running() as decoders:
        yield decoders


@pytest.fixture(scope="module")
def hour(to_file: Any) -> bytes:
    """An hour that takes a second or two."""
    content: bytes = to_file(np.zeros(8_000 * 3_600, np.int16), 8_000, "FLAC")
    return content


def ask(decoders: Decoders, content: bytes, seconds: float = HANG_SECONDS, **order: Any) -> DecodedAudio:
    window = {"max_seconds": 4_000.0, "start_seconds": 0.0, "end_seconds": None, "stop": lambda: False} | order
    with open_file(content) as file:
        return decoders.decode(file, until=time.monotonic() + seconds, **window)


@contextmanager
def open_file(content: bytes) -> Iterator[Any]:
    with SpooledTemporaryFile(max_size=2**20) as file:  # as an upload comes
        file.write(content)
        yield file


def full(decoders: Decoders, count: int = 2) -> bool:
    return len(decoders.pids()) == count and decoders._free.qsize() == count


def gone(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def spent(pid: int) -> int:
    """Ticks of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_the_samples_are_the_same(pool: Decoders, speech: Any, to_file: Any, form: str) -> None:
    content = to_file(speech, 44_100, form)
    here, there = decode(io.BytesIO(content), 60), ask(pool, content)
    np.testing.assert_array_equal(there.samples, here.samples)
    assert there.samples.dtype == np.float32 and there.samples.flags.writeable


def test_a_window_and_warnings_cross(pool: Decoders, speech: Any, to_file: Any) -> None:
    content = to_file(np.stack([speech, -speech], axis=1), 24_000)
    assert len(ask(pool, content, start_seconds=0.5, end_seconds=1.0).samples) == 12_000
    assert ask(pool, content).warnings == decode(io.BytesIO(content), 60).warnings != ()


@pytest.mark.parametrize(
    ("content", "order", "error"),
    [(b"", {}, AudioInvalid), (b"words, and no sound", {}, UnsupportedFormat),
     (None, {"max_seconds": 0.5}, AudioTooLong), (None, {"start_seconds": 9.0}, AudioTooShort)],
)  # fmt: skip
def test_errors_cross(
    pool: Decoders, clip: bytes, content: bytes | None, order: dict[str, Any], error: type[ServiceError]
) -> None:
    given = clip if content is None else content
    with pytest.raises(error) as there:
        ask(pool, given, **order)
    with pytest.raises(error) as here:
        decode(io.BytesIO(given), **({"max_seconds": 4_000.0} | order))
    assert (there.value.message, there.value.param) == (here.value.message, here.value.param)


def test_a_killed_decoder_loses_its_own_request_alone(hour: bytes, clip: bytes) -> None:
    with running() as decoders, ThreadPoolExecutor() as threads:
        until(lambda: full(decoders))
        first, second = before = decoders.pids()
        at_rest = spent(first)
        one, other = threads.submit(ask, decoders, hour), threads.submit(ask, decoders, hour)
        until(lambda: decoders._free.empty() and spent(first) > at_rest)  # killed before its order, it would lose none
        os.kill(first, signal.SIGKILL)
        lost = [future for future in (one, other) if isinstance(future.exception(HANG_SECONDS), DecoderLost)]
        assert len(lost) == 1
        (kept,) = {one, other} - set(lost)
        assert len(kept.result(HANG_SECONDS).samples) == 3_600 * 24_000
        until(lambda: full(decoders))
        assert second in decoders.pids() and decoders.pids() != before
        assert len(ask(decoders, clip).samples) > 0


def test_a_decoder_that_was_killed_at_rest_is_noticed_first(clip: bytes) -> None:
    lost: list[str] = []
    with running(lost=lost.append) as decoders:
        until(lambda: full(decoders))
        for pid in decoders.pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda: all(one.process.poll() is not None for one in decoders._all))
        assert len(ask(decoders, clip).samples) > 0
        assert len(ask(decoders, clip).samples) > 0
        assert set(lost) == {"rest"}


def test_one_that_hangs_is_ended_at_the_deadline(clip: bytes) -> None:
    with running(1) as decoders:
        until(lambda: full(decoders, 1))
        (pid,) = decoders.pids()
        os.kill(pid, signal.SIGSTOP)  # it would never answer
        with pytest.raises(DeadlinePassed):
            ask(decoders, clip, 0.2)
        assert gone(pid)
        assert len(ask(decoders, clip).samples) > 0


def processor_seconds(pid: int) -> float:
    """That a process took, which does not depend on what runs beside it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_who_leaves_stops_the_file_and_not_the_decoder(hour: bytes, clip: bytes) -> None:
    with running(1) as decoders:
        until(lambda: full(decoders, 1))
        (pid,) = decoders.pids()
        rested = processor_seconds(pid)
        with pytest.raises(DeadlinePassed):
            ask(decoders, hour, stop=lambda: processor_seconds(pid) > rested)  # it is at the file
        assert len(ask(decoders, clip).samples) > 0
        stopped = processor_seconds(pid)
        ask(decoders, hour)
        assert decoders.pids() == [pid]
        assert stopped - rested < (processor_seconds(pid) - stopped) / 2


def test_decoders_are_renewed(clip: bytes) -> None:
    with running(1, files=3) as decoders:
        until(lambda: full(decoders, 1))
        seen = []
        for _ in range(7):
            ask(decoders, clip)
            until(lambda: full(decoders, 1))
            seen += decoders.pids()
        assert [seen.count(pid) for pid in dict.fromkeys(seen)] == [2, 3, 2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_limited(pool: Decoders) -> None:
    until(lambda: full(pool))
    for pid in pool.pids():
        with open(f"/proc/{pid}/limits") as file:
            limits = dict(line.rsplit(None, 3)[:2] for line in file if line.startswith("Max address space"))
        assert limits == {"Max address space": str(MEMORY_BYTES)}


def test_a_file_that_wants_more_memory_is_refused(monkeypatch: pytest.MonkeyPatch, clip: bytes) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, "decode_to", greedy)
    ours, theirs = socket.socketpair()
    with ours, theirs, open_file(clip) as file, pytest.raises(AudioInvalid, match="memory"):
        decoder._decoded(theirs, os.dup(file.fileno()), {}, file.fileno())


def test_none_is_left_when_the_pool_is_closed(hour: bytes) -> None:
    decoders = Decoders(2)
    until(lambda: full(decoders))
    pids = decoders.pids()
    decoders.close()
    assert all(gone(pid) for pid in pids) and decoders.pids() == []


def test_closing_while_they_start_leaves_none() -> None:
    decoders = Decoders(2)
    until(lambda: len(decoders.pids()) == 2)
    pids = decoders.pids()
    decoders.close()
    assert all(gone(pid) for pid in pids)


def test_none_outlives_a_server_that_is_killed() -> None:
    code = (
        "import time\nfrom app.server.decoders import Decoders\nd = Decoders(2)\n"
        "while d._free.qsize() < 2: time.sleep(0.01)\nprint(*d.pids(), flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(word) for word in server.stdout.readline().split()]
        server.kill()
    assert len(pids) == 2
    until(lambda: all(gone(pid) for pid in pids))


def test_decoders_do_not_load_torch() -> None:
    code = "import sys, app.audio.decoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_server_goes_on(serve: Any, hour: bytes, clip: bytes) -> None:
    """kill -9 over HTTP: a 500 with its words for one request, and the next is answered."""
    service = serve(decoder_processes=True)
    processes = service.app.state.processes
    until(lambda: full(processes))
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(service.post, "/score", hour)
        until(lambda: processes._free.qsize() == 1)
        time.sleep(0.1)
        free = processes._free.get()
        (pid,) = set(processes.pids()) - {free.process.pid}
        processes._free.put(free)
        os.kill(pid, signal.SIGKILL)
        lost = answer.result(HANG_SECONDS)
    assert (lost.status_code, lost.json()["error"]["code"]) == (500, "internal_error")
    assert "send it again" in lost.json()["error"]["message"]
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200
    assert service.app.state.engine.in_use == 0
    until(lambda: full(processes))
    assert service.value("decoders_lost_total", when="file") == 1
    assert service.value("decoders_lost_total", when="rest") == 0
    assert service.value("decoders") == 2


def test_it_can_be_turned_off(serve: Any, clip: bytes) -> None:
    service = serve(decoder_processes=False)
    assert service.app.state.processes is None
    assert service.post("/score", clip).status_code == 200
