"""How long until the first audio when the prompt is there already: kept by the server, or read while it was spoken.

    python -m benchmarks.speed.conversation                # about 4 minutes

One request at a time, four ways in turns: the file is uploaded; ``prompt`` names it; ``continue_from`` names an earlier
continuation; a session has heard it in pieces of 0.1 s, as they were spoken. From the request, or from the session's
`commit`, to the first made audio.
"""

import argparse
import base64
import io
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from websockets.sync.client import connect

from app.cli.bench import clips
from app.client.load_generator import percentiles
from benchmarks.common import DEFAULT, RESULTS
from benchmarks.speed.served import serving
from benchmarks.speed.timing import conditions, console, write
from model.constants import SAMPLE_RATE_HZ

PROMPTS_SECONDS = (3.0, 10.0)
PIECE_SECONDS = 0.1
MADE_SECONDS = 0.5


def first_byte(client: httpx.Client, **form: Any) -> float:
    """Seconds from a request to the first bytes of made audio."""
    fields = {"seconds": MADE_SECONDS, "seed": 1, "stream": "true", "response_format": "pcm"}
    parts = {name: (None, str(value)) for name, value in fields.items()}
    begin = time.perf_counter()
    with client.stream("POST", "/continue", files=parts | form) as answer:
        body = answer.iter_raw()
        next(body)
        took = time.perf_counter() - begin
        for _ in body:
            pass
    return took


def first_of_session(url: str, pcm: bytes) -> float:
    """Seconds from a session's commit to its first made audio."""
    size = 2 * round(PIECE_SECONDS * SAMPLE_RATE_HZ)
    with connect(url.replace("http", "ws") + "/v1/audio/session") as socket:
        begin = time.perf_counter()
        for count, start in enumerate(range(0, len(pcm), size)):
            time.sleep(max(begin + count * PIECE_SECONDS - time.perf_counter(), 0.0))
            socket.send(pcm[start : start + size])
        time.sleep(PIECE_SECONDS)
        begin = time.perf_counter()
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        socket.send(json.dumps({"type": "response.create", "response": {"seconds": MADE_SECONDS, "seed": 1}}))
        took = 0.0
        for message in socket:
            kind = json.loads(message)["type"]
            assert kind != "error", message
            if kind == "response.output_audio.delta" and not took:
                took = time.perf_counter() - begin
                assert base64.b64decode(json.loads(message)["delta"])
            elif kind == "response.done":
                return took
    raise RuntimeError("the session ended before its response")


def ways(client: httpx.Client, url: str, name: str, clip: bytes) -> dict[str, Callable[[], float]]:
    """Each way to the first audio after a clip."""
    samples, _ = soundfile.read(io.BytesIO(clip), dtype="float32")
    pcm = np.round(samples * 32767).astype("<i2").tobytes()
    kept = client.post("/v1/audio/prompts", files={"file": (name, clip)}).raise_for_status().json()["id"]
    form = {"prompt": (None, kept), "seconds": (None, str(MADE_SECONDS))}
    before = client.post("/continue", files=form).raise_for_status().json()["id"]
    return {
        "file": lambda: first_byte(client, file=(name, clip)),
        "prompt": lambda: first_byte(client, prompt=(None, kept)),
        "continue_from": lambda: first_byte(client, continue_from=(None, before)),
        "session": lambda: first_of_session(url, pcm),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "conversation.json")
    arguments = parser.parse_args()
    made_on = conditions() | {"turns": arguments.turns, "piece_seconds": PIECE_SECONDS}
    console.print(made_on)
    found: dict[str, dict[str, Any]] = {}
    with serving(arguments.bundle) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for seconds in PROMPTS_SECONDS:
            ((name, clip),) = itertools.islice(clips([], seconds), 1)
            each = ways(client, server.url, name, clip)
            took: dict[str, list[float]] = {way: [] for way in each}
            for turn in range(arguments.turns + 1):
                for way, run in each.items():
                    one = run()
                    if turn:  # the first turn warms up
                        took[way].append(one)
            own = found[f"{seconds:g} s prompt"] = {}
            for way, all_ in took.items():
                figures = own[way] = percentiles(all_)
                assert figures, way
                print(f"{seconds:4g} s {way:14} p50 {figures['p50'] * 1e3:5.0f} ms, p95 {figures['p95'] * 1e3:5.0f} ms")
    write(arguments.out, made_on, found)


if __name__ == "__main__":
    main()
