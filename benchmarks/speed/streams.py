"""How many live streams run at once without a gap: each must get its frames at 75 Hz.

    python -m benchmarks.speed.streams                     # about 4 minutes, both cores
    python -m benchmarks.speed.streams --levels 1 2 --seconds 2 --out /tmp/streams.json

Twice: decode workers alone, as the engine runs them (one thread each), and a server over HTTP with the client on the
same machine. A listener plays from the first 3 frames on. "Buffer needed" is what a player would have had to hold
back for no piece to come too late; a level holds when no stream needs more than ``BUFFER_SECONDS``, which is less
than players hold. Streams last long enough for their caches to be full (512 positions), so it holds for endless ones.
"""

import argparse
import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.cli.bench import clips
from app.client.load_generator import Load, Player, put_load, summary
from app.engine.sequence import FIRST_CHUNK_FRAMES
from app.settings import default_threads
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.baselines import a_prompt
from benchmarks.speed.served import Server, serving, share_below
from benchmarks.speed.timing import conditions, console, write
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ
from model.inference.backend import backend_for, workers_for
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.types import PromptState

BUFFER_SECONDS = 0.1
PROMPT_SECONDS = 3.0
ARRIVE_SECONDS = 4.0  # over HTTP the streams of a level begin one after the other within this time
LAG_BOUNDS = (0.01, 0.1)  # seconds; buckets of the metric


def heard(times: list[float]) -> Player:
    """A player of frames that came at these times."""
    player = Player()
    player.take(FIRST_CHUNK_FRAMES / FRAME_RATE_HZ, times[FIRST_CHUNK_FRAMES - 1])
    for at in times[FIRST_CHUNK_FRAMES:]:
        player.take(1 / FRAME_RATE_HZ, at)
    return player


def work(
    bundle: Bundle, prompt: PromptState, rows: int, frames: int, start: threading.Barrier, times: list[float]
) -> None:
    """One decode worker: its rows join, all workers begin together, and each step's end is written down."""
    torch.set_num_threads(1)
    slots = backend_for(bundle, rows)
    for row in range(rows):
        slots.join(row, prompt, SamplingOptions(seed=row))
    every = list(range(rows))
    start.wait()
    for _ in range(frames):
        slots.step(every)
        times.append(time.perf_counter())


def in_workers(bundle: Bundle, prompt: PromptState, streams: int, threads: int, frames: int) -> dict[str, Any]:
    """So many streams, shared out among the workers."""
    shares = [share for share in (len(part) for part in np.array_split(range(streams), threads)) if share]
    start = threading.Barrier(len(shares))
    times: list[list[float]] = [[] for _ in shares]
    workers = [
        threading.Thread(target=work, args=(bundle, prompt, share, frames, start, own))
        for share, own in zip(shares, times, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    steps = np.concatenate([np.diff(own) for own in times]) * 1e3
    slowest = max(own[-1] - own[0] for own in times)
    short = max(heard(own).short for own in times)
    return {
        "streams": streams,
        "workers": len(shares),
        "step_ms": {"p50": float(np.percentile(steps, 50)), "p99": float(np.percentile(steps, 99))},
        "times_real_time": (frames - 1) / FRAME_RATE_HZ / slowest,
        "buffer_needed_seconds": short,
        "holds": short <= BUFFER_SECONDS,
    }


def over_http(server: Server, streams: int, seconds: float) -> dict[str, Any]:
    """So many streams from a server."""
    load = Load(
        clips=clips([], PROMPT_SECONDS), url=server.url, rate=streams / ARRIVE_SECONDS, arrivals="constant",
        requests=streams, seconds=seconds, stream=True, response_format="pcm",
    )  # fmt: skip
    lag = server.histogram("event_loop_lag_seconds")
    found = summary(asyncio.run(put_load(load)), BUFFER_SECONDS)
    lag_after = server.histogram("event_loop_lag_seconds")
    figures = found["figures"]
    return {
        "streams": streams,
        "first_audio_seconds": figures["first_audio_seconds"],
        "buffer_needed_seconds": figures["buffer_needed_seconds"],
        "times_real_time": figures["real_time_factor"],
        "underruns": found["underruns"],
        "errors": found["errors"],
        "event_loop_late": {f"at_most_{bound * 1e3:g}_ms": share_below(lag, lag_after, bound) for bound in LAG_BOUNDS},
        "holds": not found["underruns"] and not found["errors"],
    }


def most(levels: list[dict[str, Any]]) -> int:
    """The largest level that holds, as do all below it."""
    held = 0
    for level in sorted(levels, key=lambda one: one["streams"]):
        if not level["holds"]:
            break
        held = level["streams"]
    return held


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24, 32, 40, 48, 64])
    parser.add_argument("--http-levels", type=int, nargs="*", default=[1, 4, 16, 32, 40, 48])
    parser.add_argument("--seconds", type=float, default=12.0, help="of each stream")
    parser.add_argument("--out", type=Path, default=RESULTS / "streams.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    threads = workers_for(bundle, default_threads())
    made_on = conditions() | {
        "bundle": bundle.name, "workers": threads, "codebooks": bundle.codec.config.codebooks,
        "prompt_seconds": PROMPT_SECONDS, "stream_seconds": arguments.seconds, "buffer_seconds": BUFFER_SECONDS,
        "arrive_seconds": ARRIVE_SECONDS,
    }  # fmt: skip
    console.print(made_on)
    prompt = prefill(bundle, a_prompt())
    frames = round(arguments.seconds * FRAME_RATE_HZ)
    backend_for(bundle, 1)  # compiled before anything is timed
    alone: list[dict[str, Any]] = []
    for streams in arguments.levels:
        alone.append(in_workers(bundle, prompt, streams, threads, frames))
        one = alone[-1]
        print(
            f"workers {streams:3} streams: step {one['step_ms']['p50']:.2f} ms (p99 {one['step_ms']['p99']:.2f}), "
            f"{one['times_real_time']:.2f} x real time, buffer needed {one['buffer_needed_seconds'] * 1e3:.0f} ms"
        )
    served: list[dict[str, Any]] = []
    slots = max(arguments.http_levels, default=0)
    if slots:
        with serving(arguments.bundle, "--slots", str(slots), "--queue", str(slots)) as server:
            over_http(server, 2, 1.0)  # warms up
            for streams in arguments.http_levels:
                served.append(over_http(server, streams, arguments.seconds))
                one = served[-1]
                buffer = one["buffer_needed_seconds"] or {"p50": float("nan"), "worst": float("nan")}
                print(
                    f"HTTP {streams:3} streams: buffer needed {buffer['p50'] * 1e3:.0f} ms, worst "
                    f"{buffer['worst'] * 1e3:.0f}; {one['underruns']} underruns, errors {one['errors']}"
                )
    body = {"workers": alone, "http": served, "live_streams": {"workers": most(alone), "http": most(served)}}
    print(body["live_streams"])
    write(arguments.out, made_on, body)


if __name__ == "__main__":
    main()
