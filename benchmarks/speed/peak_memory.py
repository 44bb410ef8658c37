"""How much memory may a server need at most? One hostile or heavy load after the other, each on a fresh server.

    python -m benchmarks.speed.peak_memory                 # about 15 minutes of two cores (Linux)

Peaks are the process's VmHWM, in MiB; `held` counts decoded clips whole, which lie in shared memory and are in VmHWM
only as far as they have been scored. Half-sent forms stop short of their end and wait; what they hold, the server
holds. The clips to score are 59 minutes of faint noise.
"""

import argparse
import io
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import Server, serving
from benchmarks.speed.timing import conditions, console, write
from benchmarks.speed.watching import Watch

MIB = 2**20
FORMS = 24
SCORES, SCORE_MINUTES = 3, 59


def memory(server: Server, name: str) -> float:
    """VmRSS (now), its parts RssAnon and RssFile, or VmHWM (at most so far), MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def held_mib(server: Server) -> float:
    """What the process has now, and all of the clips that were decoded for it."""
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    found = re.findall(r"^(\w+)-(\w+) .*/memfd:samples", maps, re.M)
    clips = sum(int(end, 16) - int(start, 16) for start, end in found) / MIB
    return memory(server, "RssAnon") + memory(server, "RssFile") + clips


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    return f'--q\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


def fields() -> bytes:
    """61 MiB of text."""
    return b"".join(part(f"field{index}", b"x" * (MIB - 1)) for index in range(61))


def small_files() -> bytes:
    """32 files that just stay in memory."""
    return b"".join(part("file", b"x" * (MIB - 1), f"{index}.wav") for index in range(32))


def one_file() -> bytes:
    """61 MiB, spooled to a file."""
    return part("file", b"x" * (61 * MIB), "long.wav")


def half_sent(server: Server, body: bytes) -> dict[str, int]:
    """What so many forms were answered; `none` is one that is waited for."""
    port = httpx.URL(server.url).port
    head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=q\r\n"
    request = f"{head}Content-Length: {len(body) + 100}\r\n\r\n".encode() + body
    clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(FORMS)]
    answers: Counter[str] = Counter()
    for client in clients:
        with suppress(OSError):  # refused, and closed since nothing came for a while: the machine is busy
            client.sendall(request)
    time.sleep(2)
    for client in clients:
        client.settimeout(0)
        try:
            answers[client.recv(12).decode()[-3:]] += 1
        except BlockingIOError:
            answers["none"] += 1
        except ConnectionError:
            answers["cut"] += 1
        client.close()
    return dict(answers)


def faint_noise() -> bytes:
    out, rng = io.BytesIO(), np.random.default_rng(0)
    with soundfile.SoundFile(out, "w", 24_000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(SCORE_MINUTES * 60):
            file.write((0.0002 * rng.standard_normal(24_000)).astype(np.float32))
    return out.getvalue()


def long_scores(server: Server, clip: bytes) -> dict[str, int]:
    answers: Counter[str] = Counter()

    def ask() -> None:
        answer = httpx.post(server.url + "/score", files={"file": ("long.flac", clip)}, timeout=3600)
        answers[str(answer.status_code)] += 1

    threads = [threading.Thread(target=ask) for _ in range(SCORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(answers)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--out", type=Path, default=RESULTS / "peak_memory.json")
    arguments = parser.parse_args()
    made_on = conditions()
    loads: dict[str, Callable[[Server], dict[str, int]]] = {
        "half_sent_text": lambda server: half_sent(server, fields()),
        "half_sent_small_files": lambda server: half_sent(server, small_files()),
        "half_sent_files": lambda server: half_sent(server, one_file()),
        "long_scores": lambda server: long_scores(server, faint_noise()),
    }
    found: dict[str, Any] = {}
    for name, load in loads.items():
        with serving(arguments.bundle, "--timeout-seconds", "1800", "--drain-grace-seconds", "0") as server:
            start = memory(server, "VmRSS")
            with Watch(partial(held_mib, server), pause=0.2) as watch:
                answers = load(server)
            found[name] = {
                "start_mib": start, "peak_mib": memory(server, "VmHWM"), "held_mib": max(watch.readings, default=0.0),
                "answers": answers,
            }  # fmt: skip
        console.print(name, found[name])
    write(arguments.out, made_on, found)


if __name__ == "__main__":
    main()
