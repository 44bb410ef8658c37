"""From a file's bytes to mono blocks at its own rate, by libsndfile and by FFmpeg.

What FFmpeg hears, we hear: a frame that cannot be decoded is left out, and `Damage` is told; the rest is heard.
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile

from app.audio.containers import (
    HEAD_BYTES,
    Kind,
    Part,
    behind_boxes,
    behind_tags,
    last_granule,
    links,
    sniff,
    wav_data,
)
from app.audio.downmix import Downmix
from app.audio.notices import Damage
from app.audio.samples import BLOCK_FRAMES, Samples
from app.errors import AudioInvalid, UnsupportedFormat

RATES_HZ = (4_000, 768_000)  # outside of these a header is broken: no device makes such files
MAX_CHANNELS = 64
PACKETS_A_LOOK = 256  # between two looks at the clock, for files whose packets hold no samples
JUNK_BYTES = 4 << 20  # what is read of an unknown file in search of MPEG frames
LAYER_1_SAMPLES = 384  # of a frame that nobody writes, and that begins as text in UTF-16 does
GOOD_PACKETS = 3  # that follow each other, before junk in front is believed to be in front of anything
MIN_LOST_SECONDS = 0.01  # less is rounding
MIN_LOST_FRAMES = 4  # of MPEG: writers of Xing's tag do not agree on whether their own frame counts
GAP_SECONDS = {"ogg": 0.01, "matroska": 0.1}  # where times tell of what is missing; Matroska's are whole ms
MIN_PAGE_SECONDS = 0.2  # of Ogg; less is what a decoder holds back
FIRST_GAP_SECONDS = 10.0  # what is cut from a live stream begins later, and has lost nothing; a page is shorter
UNKNOWN_BYTES = 0x7F00_0000  # sizes from here on are what writers put who do not know: no promise
FEW_BYTES = 64  # less is no size of samples either
SIZES = re.compile(r"^ *(?:data|SSND|Data [Ss]ize|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}
TAGS = re.compile(rb"Xing|Info|VBRI|ID3[\x02-\x04]|TAG|APETAGEX|LYRICSBEGIN")  # among MPEG frames, and no audio
XING = re.compile(rb"(?:Xing|Info)(\x00\x00\x00.)(.{8})", re.DOTALL)
TAG_BYTES = 2_048
DAMAGED = "the file is damaged, or is not what its first bytes say"
Block = tuple[int, int, Samples]  # the file's rate, its channels, mono samples
NOTHING: Block = 0, 0, np.zeros(0, np.float32)  # so that the clock is looked at


def _check(rate: int, channels: int) -> None:
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise AudioInvalid(f"a sample rate of {rate} Hz is not audio", "file")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioInvalid(f"{channels} channels are not audio", "file")


def blocks(file: BinaryIO, damage: Damage, downmix: Downmix) -> Iterator[Block]:
    """Mono blocks at the file's own rate, with that rate and the file's channels; some may be empty.

    Raises UnsupportedFormat or AudioInvalid.
    """
    begin = behind_tags(file)
    file.seek(begin)
    head = file.read(HEAD_BYTES)
    if not head:
        raise AudioInvalid("the file is empty" if not begin else "the file holds no audio", "file")
    whole: Any = Part(file, begin) if begin else file
    try:
        kind = sniff(head)
    except UnsupportedFormat:
        found = _behind_junk(whole) or (Kind("mp3") if begin else None)
        if found is None:
            raise
        kind = found
    heard = False
    for start, stop in links(whole, kind.ffmpeg):
        link: Any = Part(whole, start, stop) if start or stop is not None else whole
        link.seek(0)
        try:
            for block in _link(link, kind, damage, downmix):
                heard = heard or len(block[2]) > 0
                yield block
        except AudioInvalid:
            if not heard:
                raise
            damage.add()  # what came before it is heard
            yield NOTHING


def _behind_junk(file: BinaryIO) -> Kind | None:
    """MPEG audio that does not begin at the first byte, as a recorder's or a radio's may."""
    for form in ("mp3", "aac"):
        good, end = 0, 0
        with suppress(av.FFmpegError, ValueError), av.open(Part(file, 0, JUNK_BYTES), "r", format=form) as container:
            for packet in container.demux(container.streams.audio[0]):
                follows = packet.pos == end or not good
                try:
                    frames = packet.decode()
                    good = good + 1 if follows and frames and frames[0].samples != LAYER_1_SAMPLES else 0
                except av.FFmpegError:
                    good = 0
                end = (packet.pos or 0) + packet.size
                if good == GOOD_PACKETS:
                    return Kind(form)
    return None


def _link(file: BinaryIO, kind: Kind, damage: Damage, downmix: Downmix) -> Iterator[Block]:
    """One file. Where libsndfile finds nothing, or stops with an error, FFmpeg goes on from that sample."""
    heard, rate, promised = 0, 0, 0
    if kind.sndfile:
        try:
            with soundfile.SoundFile(file) as sound:
                rate, promised = sound.samplerate, sound.frames
                _check(rate, sound.channels)
                if sound.subtype.startswith("MPEG"):  # of WAV: libsndfile stops where it is damaged, and tells nobody
                    raise ValueError
                while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                    heard += len(block)
                    yield rate, sound.channels, downmix(block.T)
                _add_missing(sound, damage)
            if heard and (heard >= promised or kind.ffmpeg != "flac"):
                return
        except (soundfile.LibsndfileError, ValueError):
            pass
        file.seek(0)
    checked = kind.ffmpeg == "flac" and promised > 0  # libFLAC has found an error in it, which FFmpeg may not see
    if checked:
        damage.add()
    skip = heard
    promised_bytes, bytes_there = wav_data(file) if kind.ffmpeg == "wav" else (0, 0)
    written = FEW_BYTES <= promised_bytes < UNKNOWN_BYTES
    options = {"ignore_length": "1"} if kind.ffmpeg == "wav" and not heard and not written else {}
    file.seek(0)
    for rate, channels, samples in _ffmpeg(file, kind.ffmpeg, options, Damage() if checked else damage, downmix):
        new = samples[skip:]
        skip, heard = max(skip - len(samples), 0), heard + len(new)
        yield rate, channels, new
    if checked and rate:
        damage.add((promised - heard) / rate)
    if written and rate and bytes_there < promised_bytes:
        damage.add((promised_bytes / max(bytes_there, 1) - 1) * heard / rate)


def _add_missing(sound: Any, damage: Damage) -> None:
    """Sizes that a header tells and the file has not: libsndfile mends them, and says so in its log alone."""
    for told, there in SIZES.findall(sound.extra_info):
        if int(told) < UNKNOWN_BYTES and 0 < int(there) < int(told) and sound.frames:
            seconds = (int(told) - int(there)) / int(there) * sound.frames / sound.samplerate
            if seconds >= MIN_LOST_SECONDS:
                damage.add(seconds)
                return


def _channels(frame: av.AudioFrame) -> Samples:
    """(C, N), full scale 1."""
    raw, name = frame.to_ndarray(), frame.format.name
    if not frame.format.is_planar:
        raw = raw.reshape(-1, frame.layout.nb_channels).T  # packed: (1, N * C)
    name = name.removesuffix("p")
    samples = raw.astype(np.float32)
    if name in FULL_SCALE:
        samples = (samples - (FULL_SCALE[name] if name == "u8" else 0)) / np.float32(FULL_SCALE[name])
    return samples


class _Gatherer:
    """Frames of a codec, some ms each, put together to blocks."""

    def __init__(self, downmix: Downmix) -> None:
        self._downmix, self._key = downmix, (0, 0)
        self._parts: list[Samples] = []
        self._count = 0

    def add(self, frame: av.AudioFrame) -> Iterator[Block]:
        key = frame.sample_rate, frame.layout.nb_channels
        _check(*key)
        if key != self._key:
            yield from self.rest()
        self._key = key
        self._parts.append(self._downmix(_channels(frame)))
        self._count += frame.samples
        if self._count >= BLOCK_FRAMES:
            yield from self.rest()

    def rest(self) -> Iterator[Block]:
        if self._parts:
            yield *self._key, np.concatenate(self._parts)
        self._parts, self._count = [], 0


def _ffmpeg(file: BinaryIO, form: str, options: dict[str, str], damage: Damage, downmix: Downmix) -> Iterator[Block]:
    """The first audio stream. What does not decode is left out, and told to ``damage``."""
    gatherer = _Gatherer(downmix)
    try:
        with av.open(file, mode="r", format=form, options=options, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioInvalid("the file holds no audio", "file")
            stream = container.streams.audio[0]
            losses, broken = _Losses(file, form, container, damage), False
            try:
                for number, packet in enumerate(container.demux(stream)):
                    if number % PACKETS_A_LOOK == PACKETS_A_LOOK - 1:
                        yield NOTHING
                    try:
                        frames = packet.decode()
                    except av.FFmpegError:
                        losses.failed(packet)
                        continue
                    losses.passed(packet, frames)
                    for frame in frames:
                        yield from gatherer.add(frame)
            except av.FFmpegError:  # of the container: nothing can be read behind it
                broken = True
            yield from gatherer.rest()
            losses.ended(broken)
    except (av.FFmpegError, ValueError) as error:
        raise AudioInvalid(DAMAGED, "file") from error


class _Losses:
    """Finds what a file lost: packets that do not decode, holes between packets, and an end before the promised one.

    Where the container tells times, a loss is their difference. Bare MPEG frames have none: bytes are counted.
    """

    def __init__(self, file: BinaryIO, form: str, container: Any, damage: Damage) -> None:
        self._file, self._form, self._damage = file, form, damage
        self._container, self._stream = container, container.streams.audio[0]
        self._raw = form in ("mp3", "aac")
        self._heard_bytes = self._samples = self._rate = self._packets = self._failures = 0
        self._end = 0  # of the last packet: bytes, or the stream's units of time
        self._begin: int | None = None  # of the first packet, in these units
        self._told = damage.seconds  # before this file
        self._promised_bytes = 0  # where Xing's tags say that the file ends
        if form == "mp3":
            at = file.tell()
            file.seek(0)
            self._promised_bytes = self._tagged(file.read(TAG_BYTES), 0)
            file.seek(at)  # where FFmpeg left it

    def _tagged(self, content: bytes, at: int) -> int:
        """Where a file ends whose first frame, at ``at``, holds Xing's tag with a count of bytes; else 0."""
        found = XING.search(content)
        if found is None or not found[1][3] & 2:
            return 0
        place = 4 if found[1][3] & 1 else 0  # behind the count of frames
        return at + int.from_bytes(found[2][place : place + 4], "big")

    def _lost_units(self, units: int) -> None:
        self._damage.add(float(units * (self._stream.time_base or 0)))

    def _lost_bytes(self, count: int) -> None:
        self._damage.add(count / self._heard_bytes * self._samples / self._rate if self._heard_bytes else 0.0)

    def _hole(self, packet: Any) -> None:
        """Between the last packet and this one, as far as their times tell."""
        if self._raw:
            self._end += packet.size
        elif packet.pts is not None:
            gap = packet.pts - self._end
            seconds = float(gap * (packet.time_base or 0))
            most = math.inf if self._packets else FIRST_GAP_SECONDS
            if GAP_SECONDS.get(self._form, math.inf) <= seconds <= most:
                self._damage.add(seconds)
            self._end = packet.pts + (packet.duration or 0)
            self._begin = packet.pts if self._begin is None else self._begin

    def failed(self, packet: Any) -> None:
        """A packet that does not decode."""
        self._hole(packet)
        self._packets, self._failures = self._packets + 1, self._failures + 1
        content = bytes(packet)
        if self._form == "mp3":
            self._promised_bytes = max(self._promised_bytes, self._tagged(content, packet.pos or 0))
        if not self._raw:
            self._lost_units(packet.duration or 0)
        elif self._samples and not TAGS.search(content):  # else a tag, or what lies in front of the first frame
            self._lost_bytes(packet.size)

    def passed(self, packet: Any, frames: list[Any]) -> None:
        """A packet that decodes; an empty one is the end, where the decoder gives what it held back."""
        if packet.size:
            self._hole(packet)
            self._packets += 1
            self._heard_bytes += packet.size
        for frame in frames:
            self._samples, self._rate = self._samples + frame.samples, frame.sample_rate

    def ended(self, broken: bool) -> None:
        """At the end of the file, or of what can be read of it."""
        if not self._samples:
            return
        before = self._damage.seconds
        size = self._file.seek(0, io.SEEK_END)
        if self._form == "aac" and self._failures:  # FFmpeg skips to the next frame, and tells no place of it
            self._lost_bytes(size - self._end)
        if self._promised_bytes - size > MIN_LOST_FRAMES * self._heard_bytes / self._packets:
            self._lost_bytes(self._promised_bytes - size)
        if self._form == "ogg" and len(self._container.streams) == 1:
            left = (last_granule(self._file) - self._end) * float(self._stream.time_base or 0)
            if left >= GAP_SECONDS["ogg"]:
                self._damage.add(left)
            # the last packet before a dropped page may be said to last until that page ends
            lasted = float((self._end - (self._begin or 0)) * (self._stream.time_base or 0))
            if self._damage.seconds == self._told and lasted - self._samples / self._rate >= MIN_PAGE_SECONDS:
                self._damage.add(lasted - self._samples / self._rate)
        if self._form == "matroska" and self._container.duration and self._stream.time_base:
            left = self._container.duration / av.time_base - float(self._end * self._stream.time_base)
            if left >= GAP_SECONDS["matroska"] and len(self._container.streams) == 1:
                self._damage.add(left)
        pcm = self._stream.codec_context.name.startswith("pcm")
        promised, there = self._stream.frames, self._samples if pcm else self._packets
        if (pcm or self._form == "mov") and there < promised and self._stream.duration:
            self._lost_units(round(self._stream.duration * (1 - there / promised)))
        fragments = self._form == "mov" and not promised
        if fragments and self._damage.seconds == self._told and (behind := behind_boxes(self._file)):
            self._lost_bytes(behind)
        if broken and self._damage.seconds == before:
            self._damage.add()
