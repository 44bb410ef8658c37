"""Watch likelihood live: a clip is sent as if it were being spoken, and each fifth of a second is scored as it comes.

    python examples/watch_live.py examples/speech.flac

With a microphone (alsa-utils), a minute of it:

    arecord -q -f S16_LE -r 24000 -c 1 -d 60 -t raw | python examples/watch_live.py -
"""

import argparse
import sys
import time

import numpy as np
import soundfile
import soxr

from app.client import Client

RATE_HZ, PIECE = 24_000, 4_800  # bytes: 0.1 s
WIDEST_NATS = 8.0


def pieces(clip: str) -> list[bytes] | None:
    """A clip's 16-bit samples in pieces; None for standard input."""
    if clip == "-":
        return None
    samples, rate = soundfile.read(clip, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(1), rate, RATE_HZ)
    pcm = np.clip(np.round(mono * 32767), -32768, 32767).astype("<i2").tobytes()
    return [pcm[start : start + PIECE] for start in range(0, len(pcm), PIECE)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--fast", action="store_true", help="send it as fast as it is read")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key")
    given = parser.parse_args(arguments)
    ready = pieces(given.clip)
    source = iter(lambda: sys.stdin.buffer.read(PIECE), b"") if ready is None else iter(ready)
    with Client(given.url, given.key) as client, client.session() as session:
        for piece in source:
            session.append(piece[: len(piece) // 2 * 2])
            if ready is not None and not given.fast:
                time.sleep(len(piece) / 2 / RATE_HZ)
            while (event := session.event(timeout_seconds=0)) is not None:
                show(event)
        session.commit()
        for event in session:
            show(event)
            if event["type"] in ("input_audio_buffer.committed", "error"):
                break


def show(event: dict[str, object]) -> None:
    """A bar for each event that scores; the whole at the end."""
    if event["type"] == "input_audio.scored":
        logprobs = event["logprobs"]
        assert isinstance(logprobs, list)
        nll = -sum(logprobs) / len(logprobs)
        print(f"{event['first']:>6} {nll:6.2f} {'#' * round(40 * min(nll / WIDEST_NATS, 1))}", flush=True)
    elif event["type"] == "input_audio_buffer.committed":
        prompt = event["prompt"]
        assert isinstance(prompt, dict)
        print(f"{prompt['seconds']:.2f} s, {prompt['nll']:.3f} nats a token")
    elif event["type"] == "error":
        print(event["error"], file=sys.stderr)


if __name__ == "__main__":
    main()
