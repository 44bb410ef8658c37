"""Audio that comes in: any format to mono samples at 24 kHz; and the limiter of what goes out (app/audio/encode.py).

Uploads are hostile until decoded: formats are told by their bytes, decoding goes block by block and stops at the cap
(ten minutes of silence are 90 kB of FLAC), and no number in a header is believed.
"""

import math
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr

from app.audio.formats import BLOCK_FRAMES, Samples
from app.errors import AudioInvalid, AudioTooLong, AudioTooShort, DeadlinePassed, UnsupportedFormat
from model.constants import SAMPLE_RATE_HZ

RATES_HZ = (4_000, 768_000)  # outside of these a header is broken: no device makes such files
MAX_CHANNELS = 64
SOURCE_RATE = 384_000  # samples a second, all channels together, that the longest clip may have: 8 at 48 kHz
MAX_PEAK = 100.0  # 40 dB above full scale; beyond it a float file holds no audio, and would make the model overflow
HEAD_BYTES = 26  # up to the end of FLAC's sample count
FALLBACK = {b"RIFF": "wav", b"OggS": "ogg"}  # MP3 in WAV, Speex: what libsndfile cannot open and FFmpeg can


def sniff(head: bytes) -> str | None:
    """FFmpeg's format name for a file that begins with ``head``, None when libsndfile reads it.

    FFmpeg is told the format, and guesses none: it knows formats that open other files. Raises UnsupportedFormat.
    """
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return None
    if head[:4] == b"fLaC":
        unknown = len(head) >= HEAD_BYTES and not head[21] & 0x0F and not any(head[22:26])
        return "flac" if unknown else None  # FLAC from a pipe does not say its length, and libsndfile wants it
    if head[:4] == b"OggS" or (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")):
        return None
    if head[4:8] == b"ftyp":
        return "mov"  # the MP4 family
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"  # and WebM
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return "aac"  # ADTS: layer bits 00
    mpeg = head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0 and head[1] & 0x06
    if head[:3] == b"ID3" or (mpeg and head[:2] != b"\xff\xfe"):  # the last is the mark of UTF-16 text
        return None  # MPEG audio, with or without a tag
    raise UnsupportedFormat("not a known audio file: send WAV, FLAC, OGG, Opus, MP3, AIFF, M4A/AAC or WebM", "file")


def _check(rate: int, channels: int) -> None:
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise AudioInvalid(f"a sample rate of {rate} Hz is not audio", "file")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioInvalid(f"{channels} channels are not audio", "file")


def _blocks(file: BinaryIO) -> Iterator[tuple[int, int, Samples]]:
    """Mono blocks at the file's own rate, with that rate and the file's channels.

    Raises UnsupportedFormat or AudioInvalid.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise AudioInvalid("the file is empty", "file")
    container = sniff(head)
    if container is None and head[:4] in FALLBACK:
        try:
            soundfile.SoundFile(file).close()
        except soundfile.LibsndfileError:
            container = FALLBACK[head[:4]]
        file.seek(0)
    return _soundfile_blocks(file) if container is None else _av_blocks(file, container)


def _soundfile_blocks(file: BinaryIO) -> Iterator[tuple[int, int, Samples]]:
    try:
        with soundfile.SoundFile(file) as sound:
            _check(sound.samplerate, sound.channels)
            read = 0
            while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                read += len(block)
                yield sound.samplerate, sound.channels, block.mean(axis=1)
            if sound.format == "FLAC" and read < sound.frames:
                raise AudioInvalid("the file ends before its audio does", "file")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise AudioInvalid("the file is damaged, or is not what its first bytes say", "file") from error


def _av_blocks(file: BinaryIO, form: str) -> Iterator[tuple[int, int, Samples]]:
    try:
        with av.open(file, mode="r", format=form, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioInvalid("the file holds no audio", "file")
            stream = container.streams.audio[0]
            for frame in container.decode(stream):
                channels = frame.layout.nb_channels
                _check(frame.sample_rate, channels)
                planar = av.AudioResampler(format="fltp").resample(frame)
                for part in planar:
                    yield frame.sample_rate, channels, part.to_ndarray().mean(axis=0, dtype=np.float32)
    except (av.FFmpegError, ValueError) as error:
        raise AudioInvalid("the file is damaged, or is not what its first bytes say", "file") from error


def _counted(blocks: Iterator[tuple[int, int, Samples]], seconds: float) -> Iterator[tuple[int, Samples]]:
    """The blocks without their channels, as long as they cost no more than so many seconds may. Raises AudioTooLong.

    Seconds alone bound no work: an hour of silence in 8 channels at 655 kHz is a small FLAC, and 100 s of a core.
    """
    left = seconds * SOURCE_RATE
    for rate, channels, block in blocks:
        left -= channels * len(block)
        if left < 0:
            most = f"{seconds:g} s of {SOURCE_RATE // 1000} kHz, all channels together"
            raise AudioTooLong(f"the file holds more samples than {most}: send a lower rate or fewer channels", "file")
        yield rate, block


def _resampled(blocks: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Blocks at their own rate -> blocks at 24 kHz. A rate that changes within a file starts a new resampler."""
    rate_before = 0
    resampler: soxr.ResampleStream | None = None
    for rate, block in blocks:
        if not np.isfinite(block).all():
            raise AudioInvalid("the file holds samples that are not numbers", "file")
        if len(block) and np.abs(block).max() > MAX_PEAK:
            raise AudioInvalid(f"the file holds samples above {MAX_PEAK:g}, where full scale is 1", "file")
        if rate != rate_before:
            if resampler is not None:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            same = rate == SAMPLE_RATE_HZ
            resampler = None if same else soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
            rate_before = rate
        yield block if resampler is None else resampler.resample_chunk(np.ascontiguousarray(block))
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def decode(
    file: BinaryIO,
    max_seconds: float,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Samples:
    """The samples of an upload from ``start_seconds`` to ``end_seconds`` (None: its end), (N,) float32, mono, 24 kHz.

    Raises UnsupportedFormat, AudioInvalid (damaged, no samples, not numbers), AudioTooShort (it ends before
    ``start_seconds``) or AudioTooLong (more than ``max_seconds`` are asked for, or more samples than these may have at
    `SOURCE_RATE`); the last without decoding the rest.
    ``stop`` is asked after each block; when it says so, DeadlinePassed is raised.
    """
    file.seek(0)
    first = round(start_seconds * SAMPLE_RATE_HZ)
    last = math.inf if end_seconds is None else round(end_seconds * SAMPLE_RATE_HZ)
    cap = first + round(max_seconds * SAMPLE_RATE_HZ)
    if last != math.inf and last > cap:
        raise AudioTooLong(f"at most {max_seconds:g} s of audio are taken", "prompt_end")
    kept: list[Samples] = []
    position = 0
    for block in _resampled(_counted(_blocks(file), cap / SAMPLE_RATE_HZ)):
        if stop():
            raise DeadlinePassed("the file could not be decoded in time")
        begin, position = position, position + len(block)
        if position > first:  # not even an empty slice of what is skipped: it would keep the block in memory
            kept.append(block[max(first - begin, 0) : max(int(min(last, position)) - begin, 0)])
        if position >= last:
            break
        if position > cap:
            raise AudioTooLong(f"the audio is longer than the {max_seconds:g} s that are taken", "file")
    samples = np.concatenate(kept) if kept else np.zeros(0, np.float32)
    if position == 0:
        raise AudioInvalid("the file holds no samples", "file")
    if not len(samples):
        raise AudioTooShort(f"the audio ends at {position / SAMPLE_RATE_HZ:.2f} s", "prompt_start")
    return np.asarray(samples, dtype=np.float32)
