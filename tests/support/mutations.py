"""Damaged files by the thousand, decoded as a decoder process does: `python -m tests.support.mutations FIRST COUNT`.

A line for each: its number, its format, and what became of it. File i is a function of i. A crash ends the lines.
"""

import io
import random
import resource
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import av
import numpy as np
import soundfile

from app.audio.decode import decode
from app.errors import ServiceError
from app.server.decoders import MEMORY_BYTES
from benchmarks.speed.hostile import damaged
from model.constants import SAMPLE_RATE_HZ

MAX_SECONDS = 60.0
BLOCKS = 20_000  # after which a file that does not end is told to: some 65,536 samples each
LIBSNDFILE = [  # format, subtype, rate, channels
    ("WAV", "PCM_16", 24_000, 1), ("WAV", "FLOAT", 44_100, 2), ("WAV", "IMA_ADPCM", 16_000, 1),
    ("WAVEX", "PCM_24", 48_000, 2), ("RF64", "PCM_16", 24_000, 1), ("W64", "PCM_16", 24_000, 1),
    ("AIFF", "PCM_16", 24_000, 1), ("AU", "PCM_16", 8_000, 1), ("CAF", "ALAC_16", 24_000, 1),
    ("FLAC", "PCM_16", 44_100, 2), ("OGG", "VORBIS", 24_000, 1), ("OGG", "OPUS", 48_000, 2),
    ("MP3", "MPEG_LAYER_III", 24_000, 1),
]  # fmt: skip
LIBAV = [("adts", "aac", 24_000), ("mp4", "aac", 44_100), ("webm", "libopus", 48_000), ("matroska", "flac", 24_000)]


def tone(rate: int, channels: int) -> np.ndarray:
    """Half a second, (N, channels) float32."""
    samples = 0.3 * np.sin(np.arange(rate // 2) * 0.05) + 0.01 * np.random.default_rng(0).standard_normal(rate // 2)
    return np.repeat(samples[:, None], channels, axis=1).astype(np.float32)


def by_libsndfile(form: str, subtype: str, rate: int, channels: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(rate, channels), rate, subtype, format=form)
    return out.getvalue()


def by_libav(form: str, codec: str, rate: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        sample_format = "s16" if codec in ("flac", "libopus") else "fltp"
        stream.format = sample_format
        samples = tone(rate, 1).T
        whole = samples if sample_format == "fltp" else np.round(samples * 32_767).astype(np.int16)
        container.start_encoding()
        size = stream.codec_context.frame_size or 1_024
        for start in range(0, whole.shape[1], size):
            part = np.ascontiguousarray(whole[:, start : start + size])
            frame = av.AudioFrame.from_ndarray(part, format=sample_format, layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


@cache
def sources() -> list[tuple[str, bytes]]:
    """A good file of each format."""
    made: list[tuple[str, Callable[[], bytes]]] = [
        *((f"{one[0]}/{one[1]}", lambda one=one: by_libsndfile(*one)) for one in LIBSNDFILE),
        *((f"{one[0]}/{one[1]}", lambda one=one: by_libav(*one)) for one in LIBAV),
    ]
    return [(name, make()) for name, make in made]


def mutated(index: int) -> tuple[str, bytes]:
    """The file of that number, and its format: damaged anywhere, or in its head, or two formats joined."""
    rng = random.Random(f"file {index}")
    name, content = rng.choice(sources())
    cut = rng.choice([len(content), len(content), 64, 256])
    head, rest = content[:cut], content[cut:]
    body = damaged(head, rng) + rest
    if rng.random() < 0.1:
        body += rng.choice(sources())[1]
    return name, body


def outcome(content: bytes) -> str:
    """What a client would be told: "heard", or an error's code. Raises whatever else comes, and AssertionError."""
    left = BLOCKS

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    try:
        samples = decode(io.BytesIO(content), MAX_SECONDS, stop=stop).samples
    except ServiceError as error:
        return error.code
    assert samples.dtype == np.float32 and 0 < len(samples) <= MAX_SECONDS * SAMPLE_RATE_HZ
    assert np.isfinite(samples).all()
    return "heard"


def main(first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for index in range(first, first + count):
        name, content = mutated(index)
        sys.stdout.write(f"{index} {name} {outcome(content)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
