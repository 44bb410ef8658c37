"""What it costs a request that its upload is decoded by another process, and what a lost process costs.

    python -m benchmarks.speed.decoders             # half a minute of one core (Unix)

The same file is decoded here and by a process, in turns, so that both meet the same machine. The cost is the
difference of the medians, and of the least, on the clock; and of the CPU time of both processes, of which other work
on the machine is no part. To benchmarks/results/decoders.json.
"""

import argparse
import io
import os
import signal
import statistics
import tempfile
import time
from typing import Any, BinaryIO

import numpy as np
import soundfile

from app.audio.decode import decode
from app.server.decoders import Decoders
from benchmarks.common import RESULTS, rounded, write_json
from model.constants import SAMPLE_RATE_HZ

CLIPS = ((1, "FLAC"), (5, "FLAC"), (5, "MP3"), (30, "FLAC"), (60, "FLAC"), (60, "MP3"), (60, "WAV"))
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def clip(seconds: int, form: str) -> BinaryIO:
    """Noise, the hardest to decode, on a disk's cache as an upload is."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(seconds * SAMPLE_RATE_HZ)
    made = io.BytesIO()
    with soundfile.SoundFile(made, "w", SAMPLE_RATE_HZ, 1, format=form) as sound:
        for start in range(0, len(samples), 65_536):
            sound.write(samples[start : start + 65_536])
    file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with its last use
    file.write(made.getvalue())
    file.flush()
    return file


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5))."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS


def measured(decoders: Decoders, file: BinaryIO, turns: int) -> dict[str, float]:
    """Milliseconds of one clip, here and there."""
    here, there = [], []
    cpu_here, cpu_there = 0.0, 0.0
    (pid,) = decoders.pids()
    before = cpu_seconds(pid)  # it rests while this process decodes
    for _ in range(turns):
        began, spent = time.perf_counter(), time.process_time()
        decode(file, 3_600)
        here.append(time.perf_counter() - began)
        between = time.process_time()
        cpu_here += between - spent
        began = time.perf_counter()
        decoders.decode(file, 3_600, 0.0, None, time.monotonic() + 60, lambda: False)
        there.append(time.perf_counter() - began)
        cpu_there += time.process_time() - between
    cpu_there += cpu_seconds(pid) - before
    return {
        "here_ms": 1000 * statistics.median(here),
        "process_ms": 1000 * statistics.median(there),
        "cost_ms": 1000 * (statistics.median(there) - statistics.median(here)),
        "least_cost_ms": 1000 * (min(there) - min(here)),
        "cost_cpu_ms": 1000 * (cpu_there - cpu_here) / turns,
    }


def replaced(decoders: Decoders) -> float:
    """Seconds from the death of the only process until another one has decoded a second of audio."""
    file = clip(1, "FLAC")
    (pid,) = decoders.pids()
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.05)
    began = time.perf_counter()
    decoders.decode(file, 3_600, 0.0, None, time.monotonic() + 60, lambda: False)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    turns = parser.parse_args().turns
    decoders = Decoders(1, files=1_000_000)
    rows: list[dict[str, Any]] = []
    try:
        decoders.decode(clip(1, "FLAC"), 3_600, 0.0, None, time.monotonic() + 60, lambda: False)  # it has come up
        for seconds, form in CLIPS:
            row = measured(decoders, clip(seconds, form), turns)
            rows.append({"seconds": seconds, "format": form, **row})
            print(f"{seconds:3} s {form:5}" + "".join(f"  {name} {value:7.2f}" for name, value in row.items()))
        with open(f"/proc/{decoders.pids()[0]}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        memory = {name: int(status[name].split()[0]) / 1024 for name in ("VmPeak", "VmHWM", "RssAnon")}
        death = replaced(decoders)
    finally:
        decoders.close()
    print(f"replaced in {death:.2f} s; MiB {memory}")
    body = {"clips": rows, "memory_mib": memory, "replaced_seconds": death}
    conditions = {"load_average": os.getloadavg()[0], "turns": turns}
    write_json(RESULTS / "decoders.json", rounded(body | conditions))


if __name__ == "__main__":
    main()
