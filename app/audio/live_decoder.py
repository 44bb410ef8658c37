"""A process that decodes one session's Opus while it comes; what a crash of libav takes with it is this alone.

It is asked over its standard input: a kind, the seconds that may be decoded, a count of bytes, and these. For each it
answers on its standard output: a line of JSON, and the samples that it tells of (float32, mono, 24 kHz). The end of its
input is its own, so none outlives its server.
"""

import json
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import av
import numpy as np
import soxr

from app.audio.decode import MAX_PEAK
from app.audio.downmix import Downmix
from app.audio.samples import Samples
from model.constants import SAMPLE_RATE_HZ

CodedFormat = Literal["opus", "ogg", "webm"]  # bare packets, and what carries them
ORDER = struct.Struct("<cdI")
DATA, END, DROP = b"d", b"e", b"x"  # more; no more: what is held back, please; forget it
CODED_RATE_HZ = 48_000  # what every Opus is decoded to (RFC 6716)
MIN_PROBED = {"probesize": "32", "analyzeduration": "0"}  # else FFmpeg would wait for seconds before the first sample
AHEAD_BYTES = 4_096  # what a demuxer asks for at once; fewer are taken


class Closed(Exception):
    """The server has gone."""


class Answers:
    """One order after another; what is decoded meanwhile is the answer to the one that is open."""

    def __init__(self, inward: BinaryIO, outward: BinaryIO) -> None:
        self._in, self._out = inward, outward
        self._open = False
        self._begin(0.0)

    def _begin(self, most_seconds: float) -> None:
        self._left = round(max(most_seconds, 0.0) * SAMPLE_RATE_HZ)
        self._parts: list[Samples] = []
        self._told: dict[str, Any] = {}
        self._damaged = 0

    def next(self) -> tuple[bytes, bytes]:
        """Answers the order that is open, and waits for the next: its kind and its bytes. Raises Closed."""
        if self._open:
            samples = np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)
            line = json.dumps({"samples": len(samples), "damaged": self._damaged, **self._told})
            self._out.write(line.encode() + b"\n" + samples.astype("<f4").tobytes())
            self._out.flush()
        head = self._in.read(ORDER.size)
        if len(head) < ORDER.size:
            raise Closed
        kind, most_seconds, size = ORDER.unpack(head)
        self._begin(most_seconds)
        self._open = True
        return kind, self._in.read(size)

    def add(self, samples: Samples) -> bool:
        """Some more samples; False, and they are left out, where that is more than may be decoded."""
        if len(samples) > self._left:
            self._told["too_long"] = True
            return False
        self._left -= len(samples)
        self._parts.append(samples)
        return True

    def damaged(self) -> None:
        """A packet is left out."""
        self._damaged += 1

    def failed(self) -> None:
        """Nothing more can be read of what comes."""
        self._told["failed"] = True

    def rest(self) -> bytes:
        """Leaves out all that comes, until it ends or is to be dropped. Returns which."""
        while (order := self.next())[0] == DATA:
            self.failed()
        return order[0]


class _Mono:
    """Decoded frames to mono at 24 kHz."""

    def __init__(self, answers: Answers) -> None:
        self._answers, self._downmix = answers, Downmix()
        self._resampler = soxr.ResampleStream(CODED_RATE_HZ, SAMPLE_RATE_HZ, 1)

    def add(self, frames: list[av.AudioFrame]) -> bool:
        """False when that is more than may be decoded."""
        for frame in frames:
            samples = self._downmix(np.asarray(frame.to_ndarray(), np.float32))
            if not (np.isfinite(samples).all() and np.abs(samples).max(initial=0) <= MAX_PEAK):
                self._answers.damaged()
            elif not self._answers.add(self._resampler.resample_chunk(samples)):
                return False
        return True

    def end(self) -> None:
        self._answers.add(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _fresh() -> Any:
    context: Any = av.CodecContext.create("opus", "r")
    context.sample_rate, context.layout = CODED_RATE_HZ, "stereo"  # a packet says itself whether it is mono
    return context


def packets(answers: Answers) -> None:
    """Bare packets, one an order, until they end: a damaged one is left out. Raises Closed."""
    decoder, mono = _fresh(), _Mono(answers)
    while True:
        kind, data = answers.next()
        if kind != DATA:
            if kind == END:
                mono.end()
            return
        try:
            frames = decoder.decode(av.Packet(data)) if data else []  # an empty one would end the decoder
        except av.FFmpegError:
            answers.damaged()
        else:
            mono.add(frames)


class _Incoming:
    """What comes, as the file that a demuxer reads. Where it has read all, the order is answered, the next awaited."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._left = b""
        self.end = b""  # the kind of the order that ended it

    def read(self, size: int) -> bytes:
        while not self._left and not self.end:
            kind, self._left = self._answers.next()
            if kind != DATA:
                self.end = kind
        data, self._left = self._left[:size], self._left[size:]
        return data


def _packets_of(file: _Incoming, form: str) -> Iterator[Any]:
    with av.open(file, "r", format=form, options=MIN_PROBED, buffer_size=AHEAD_BYTES) as container:
        streams = container.streams.audio
        if not streams or streams[0].codec_context.name != "opus":
            raise ValueError("holds no Opus")  # FFmpeg's own decoder gives floats; others give integers
        yield from container.demux(streams[0])


def container(answers: Answers, form: str) -> None:
    """A stream of Ogg or WebM, cut anywhere, until it ends. Raises Closed."""
    file, mono = _Incoming(answers), _Mono(answers)
    try:
        for packet in _packets_of(file, form):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                answers.damaged()
                continue
            if file.end != DROP and not mono.add(frames):
                file.end = file.end or answers.rest()  # what is left out is missing for what would follow
                break
    except (av.FFmpegError, ValueError):
        if not file.end:  # nothing can be read behind it
            answers.failed()
            file.end = answers.rest()
    if file.end == END:
        mono.end()


def main(form: str, memory_bytes: int) -> None:
    """Decodes one stream after another."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = Answers(sys.stdin.buffer, sys.stdout.buffer)
    try:
        while True:
            packets(answers) if form == "opus" else container(answers, form)
    except (Closed, BrokenPipeError):
        pass
