"""What is free goes back to the system, and only when work was done."""

import asyncio
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import app.server.memory
from app.server.memory import KERNELS, keep_little, keep_small, trimmer

BLOCK_BYTES, BLOCKS = 64_000, 2_000  # 128 MB, in blocks that the C library asks the system for together


def resident_bytes() -> int:
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(trimmer() is None, reason="this system's C library cannot be asked to give memory back")
def test_gaps_go_back_to_the_system() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    blocks = [library.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    for block in blocks[::2]:
        library.free(block)
    before = resident_bytes()
    trim = trimmer()
    assert trim is not None
    trim()
    given = before - resident_bytes()
    for block in blocks[1::2]:
        library.free(block)
    assert given > 0.8 * BLOCK_BYTES * BLOCKS / 2


KEPT = """
import ctypes, sys, threading
from app.server.memory import keep_little
keep_little()
library = ctypes.CDLL(None)
library.malloc.restype, library.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
library.malloc_info.argtypes, library.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
here = threading.Barrier(12)
def take():
    library.malloc(ctypes.c_size_t(50_000))
    here.wait()
    here.wait()
threads = [threading.Thread(target=take) for _ in range(11)]
for thread in threads:
    thread.start()
here.wait()
out = library.fopen(sys.argv[1].encode(), b"w")
library.malloc_info(0, out)
library.fclose(out)
here.wait()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="this system's C library has no arenas")
@pytest.mark.parametrize(("given", "arenas"), [({}, {1, 2}), ({"MALLOC_ARENA_MAX": "5"}, {5})])
def test_threads_share_arenas(tmp_path: Path, given: dict[str, str], arenas: set[int]) -> None:
    """Unless the environment says otherwise."""
    out = tmp_path / "arenas.xml"
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    subprocess.run([sys.executable, "-c", KEPT, str(out)], check=True, env=environment | given)
    assert out.read_text().count("<heap nr=") in arenas


def test_onednn_keeps_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")  # this process's own are left alone
    monkeypatch.setenv(name, "7")
    keep_little()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    keep_little()
    assert os.environ[name] == str(KERNELS)


class Ended(Exception):
    """No more looks."""


def test_an_idle_server_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is given back after each spell in which something was done, and not again before the next."""
    trims: list[int] = []
    looks = [0, 0, 3, 5, 5, 5, 6, 6, 6]
    at = -1

    def work() -> int:
        nonlocal at
        at += 1
        if at == len(looks):
            raise Ended
        return looks[at]

    monkeypatch.setattr(app.server.memory, "trimmer", lambda: lambda: trims.append(looks[at]))
    with pytest.raises(Ended):
        asyncio.run(keep_small(work, 0.0))
    assert trims == [3, 5, 6]


def test_without_such_a_library_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert trimmer() is None
    asyncio.run(asyncio.wait_for(keep_small(lambda: 0), 5))  # it ends at once
