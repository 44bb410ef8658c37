"""Samples to bytes while they are made: an encoder takes mono samples at 24 kHz in pieces of any length.

The pieces do not show in what comes out: codecs get frames of their own size, and keep the remainder. A whole file is
one piece (`encode`), so a stream put together equals the whole answer: byte for byte, and for WAV, whose header tells
sizes that a stream does not know, from its first sample on.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol, cast

import av
import numpy as np
import numpy.typing as npt
import soundfile

from app.audio.formats import FORMATS, Codec, Format, StreamFormat
from app.audio.samples import BLOCK_FRAMES, Samples
from model.constants import SAMPLE_RATE_HZ

UNKNOWN = 0xFFFF_FFFF  # the size that a streamed WAV tells; readers take what comes (with 0 they take nothing)


def to_pcm(samples: Samples) -> npt.NDArray[np.int16]:
    """16 bits: what every format holds or is made from, so that all of them agree sample for sample."""
    return np.round(np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)


class Encoder(Protocol):
    """Bytes of one file; ``head`` comes first. `close` in any case, also when the file is not finished."""

    head: bytes

    def feed(self, samples: Samples) -> bytes:
        """(N,) float32 -> the bytes that are ready, maybe none."""

    def finish(self) -> bytes:
        """The rest; nothing can be fed after it."""

    def close(self) -> None: ...


class PcmEncoder:
    """Bare s16le; holds nothing back."""

    head = b""

    def feed(self, samples: Samples) -> bytes:
        return to_pcm(samples).astype("<i2").tobytes()

    def finish(self) -> bytes:
        return b""

    def close(self) -> None: ...


def wav_head(data_bytes: int | None) -> bytes:
    """The 44 bytes in front of s16le samples at 24 kHz, mono; None: a stream, of unknown size."""
    riff = UNKNOWN if data_bytes is None else data_bytes + 36
    data = UNKNOWN if data_bytes is None else data_bytes
    numbers = (
        (16, 4), (1, 2), (1, 2), (SAMPLE_RATE_HZ, 4), (2 * SAMPLE_RATE_HZ, 4), (2, 2), (16, 2),
    )  # fmt: skip  # chunk size, PCM, channels, rate, bytes a second, bytes a sample, bits
    fmt = b"".join(value.to_bytes(width, "little") for value, width in numbers)
    return b"RIFF" + riff.to_bytes(4, "little") + b"WAVEfmt " + fmt + b"data" + data.to_bytes(4, "little")


class WavEncoder(PcmEncoder):
    """PCM behind a header of unknown size."""

    head = wav_head(None)


class _Sink:
    """Where FFmpeg writes; it can not seek, so no header is mended afterwards."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


class CodecEncoder:
    """Any format that FFmpeg has a codec for.

    Every page or frame is written as soon as it is complete. Of the audio that was fed, an Opus stream holds back up to
    40 ms: a frame, the page before it, which FFmpeg keeps so that it can mark the last one, and the codec's own 6.5 ms.
    An MP3 stream holds back up to 91 ms: two frames, and the 46 ms of delay that LAME and its decoders have. It starts
    with these 46 ms of silence: without a tag that only a finished file can have, readers do not know to skip them.
    Nothing random is in the bytes (``bitexact``: Ogg's stream number would be).
    """

    def __init__(self, codec: Codec) -> None:
        self._sink, self._kept, self._position = _Sink(), np.zeros(0, np.int16), 0
        self._frame_samples, self._sample_format = codec.frame_samples, codec.sample_format
        options = {"fflags": "+bitexact", "flush_packets": "1"} | codec.container_options
        self._container = av.open(self._sink, "w", format=codec.container, container_options=options)
        stream = self._container.add_stream(codec.name, rate=SAMPLE_RATE_HZ, options=codec.options)
        assert isinstance(stream, av.AudioStream)
        stream.layout, stream.format = "mono", codec.sample_format
        stream.bit_rate = codec.bit_rate
        self._stream = stream
        self._container.start_encoding()
        assert stream.codec_context.frame_size == codec.frame_samples, stream.codec_context.frame_size
        self.head = self._sink.take()

    def _encode(self, pcm: npt.NDArray[np.int16] | None) -> None:
        frame = None
        if pcm is not None:
            frame = av.AudioFrame.from_ndarray(pcm[None, :], format=self._sample_format, layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, self._position
            self._position += len(pcm)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def feed(self, samples: Samples) -> bytes:
        pcm = np.concatenate([self._kept, to_pcm(samples)])
        whole = len(pcm) - len(pcm) % self._frame_samples
        for start in range(0, whole, self._frame_samples):
            self._encode(pcm[start : start + self._frame_samples])
        self._kept = pcm[whole:].copy()
        return self._sink.take()

    def finish(self) -> bytes:
        if len(self._kept):
            self._encode(self._kept)
        self._encode(None)
        self._container.close()
        return self._sink.take()

    def close(self) -> None:
        with suppress(av.FFmpegError):  # what was not finished has no good end, and nobody reads it
            self._container.close()


def encoder(form: StreamFormat) -> Encoder:
    """An encoder of a streamed file."""
    codec = FORMATS[form].codec
    if codec is not None:
        return CodecEncoder(codec)
    return WavEncoder() if form == "wav" else PcmEncoder()


def parts(form: StreamFormat, pieces: Iterator[Samples]) -> Iterator[bytes]:
    """The bytes of a streamed file as they become ready, from pieces of it as they are made."""
    one = encoder(form)
    try:
        yield one.head
        for piece in pieces:
            yield one.feed(piece)
        yield one.finish()
    finally:
        one.close()


def encode(samples: Samples, form: Format) -> bytes:
    """A finished file with exact sizes: (N,) float32 at 24 kHz -> its bytes."""
    if form == "wav":
        pcm = PcmEncoder().feed(samples)
        return wav_head(len(pcm)) + pcm
    container = FORMATS[form].libsndfile
    if container is None:
        return b"".join(parts(cast(StreamFormat, form), iter([samples])))
    out = io.BytesIO()
    pcm16 = to_pcm(samples)
    with soundfile.SoundFile(out, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format=container) as sound:
        for start in range(0, len(pcm16), BLOCK_FRAMES):
            sound.write(pcm16[start : start + BLOCK_FRAMES])
    return out.getvalue()
