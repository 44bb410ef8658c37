"""What lies in a file before anything decodes it: its format by its bytes, tags in front, files that were joined."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.errors import UnsupportedFormat

HEAD_BYTES = 26  # up to the end of FLAC's sample count
ID3_HEAD_BYTES = 10
MAX_TAGS = 16  # in front of a file; beyond that it is an attack
MAX_CHUNKS = 256  # of a WAV file, in front of its samples
MAX_PAGE_BYTES = 27 + 255 + 255 * 255  # of Ogg
SCAN_BYTES = 1 << 16
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"
WAV = (b"RIFF", b"RF64", b"RIFX")
# Where another file may begin within one: FLAC's first block, and Ogg's page that begins a stream (RFC 3533).
JOINTS = {"flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"), "ogg": re.compile(rb"OggS\x00[\x02\x06]", re.DOTALL)}


@dataclass(frozen=True)
class Kind:
    """How a file is read: FFmpeg's name of its format, and whether libsndfile is asked first."""

    ffmpeg: str
    sndfile: bool = False


def sniff(head: bytes) -> Kind:
    """The kind of a file that begins with ``head``. Raises UnsupportedFormat.

    FFmpeg is told the format, and guesses none: it knows formats that open other files. libsndfile is first where it
    is right more often, and checks more: PCM in all its wrappings, and FLAC. What it makes of MP3 and Ogg ends
    silently where one file was joined to another.
    """
    if head[:4] in WAV and head[8:12] == b"WAVE":
        return Kind("wav", sndfile=True)
    if head[:4] == b"fLaC":
        unknown = len(head) >= HEAD_BYTES and not head[21] & 0x0F and not any(head[22:26])
        return Kind("flac", sndfile=not unknown)  # FLAC from a pipe does not say its length, and libsndfile wants it
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Kind("aiff", sndfile=True)
    if head[:12] == W64:
        return Kind("w64", sndfile=True)
    if head[:6] == b"caff\x00\x01":
        return Kind("caf", sndfile=True)
    if head[:4] in (b".snd", b"dns."):
        return Kind("au", sndfile=True)
    if head[:4] == b"OggS":
        return Kind("ogg")
    if head[4:8] == b"ftyp":
        return Kind("mov")  # the MP4 family
    if head[:4] == b"\x1aE\xdf\xa3":
        return Kind("matroska")  # and WebM
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return Kind("aac")  # ADTS: layer bits 00
    mpeg = head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0 and head[1] & 0x06
    if head[:3] == b"ID3" or (mpeg and head[:2] != b"\xff\xfe"):  # the last is the mark of UTF-16 text
        return Kind("mp3")  # MPEG audio, with or without a tag
    raise UnsupportedFormat(
        "not a known audio file: send WAV, FLAC, OGG, Opus, MP3, AIFF, AU, CAF, W64, M4A/AAC or WebM", "file"
    )


def is_pcm(file: BinaryIO) -> bool:
    """Whether a file has one of the wrappings of PCM: of these an hour is large."""
    file.seek(0)
    try:
        kind = sniff(file.read(HEAD_BYTES))
    except UnsupportedFormat:
        return False
    return kind.sndfile and kind.ffmpeg != "flac"


def behind_tags(file: BinaryIO) -> int:
    """Where a file begins behind its ID3v2 tags (their size: 4 x 7 bits, id3.org/id3v2.4.0-structure, 3.1)."""
    at = 0
    for _ in range(MAX_TAGS):
        file.seek(at)
        head = file.read(ID3_HEAD_BYTES)
        if head[:3] != b"ID3" or len(head) < ID3_HEAD_BYTES or any(byte & 0x80 for byte in head[6:]):
            break
        size = int.from_bytes(bytes(head[6:10]), "big")
        size = sum((size >> 8 * place & 0x7F) << 7 * place for place in range(4))
        at += ID3_HEAD_BYTES * (2 if head[5] & 0x10 else 1) + size  # the flag: a footer
    return at


class Part(io.RawIOBase):
    """The bytes of a file from ``start`` to ``stop`` (None: its end), as a file. The file stays open."""

    def __init__(self, file: BinaryIO, start: int, stop: int | None = None) -> None:
        self._file, self._start, self._at = file, start, 0
        end = file.seek(0, io.SEEK_END)
        self._size = max(min(end, end if stop is None else stop) - start, 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, self._size)[whence], 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what callers pass is one
        view = memoryview(buffer)
        self._file.seek(self._start + self._at)
        got = self._file.read(max(min(len(view), self._size - self._at), 0))
        view[: len(got)] = got
        self._at += len(got)
        return len(got)


def _find(file: BinaryIO, pattern: re.Pattern[bytes], at: int) -> int | None:
    """Where the pattern (32 bytes at most) next begins, from ``at`` on."""
    kept = b""
    file.seek(at)
    while block := file.read(SCAN_BYTES):
        if found := pattern.search(kept + block):
            return at - len(kept) + found.start()
        kept, at = (kept + block)[-32:], at + len(block)
    return None


def _page_end(file: BinaryIO, at: int) -> int:
    """Where an Ogg page ends that begins at ``at``."""
    file.seek(at + 26)
    count = file.read(1)
    return at + 27 + sum([*count, *file.read(count[0])]) if count else at + 27


def last_granule(file: BinaryIO) -> int:
    """How far an Ogg file goes by the head of its last page, of which more need not be there; 0: it does not say.

    FFmpeg drops a page that was cut, or whose sum is wrong, without a word.
    """
    file.seek(max(file.seek(0, io.SEEK_END) - MAX_PAGE_BYTES, 0))
    end = file.read()
    at = end.rfind(b"OggS\x00") + 6
    granule = int.from_bytes(end[at : at + 8], "little", signed=True) if 6 <= at <= len(end) - 8 else 0
    return max(granule, 0)  # -1: no packet ends on the page


def behind_boxes(file: BinaryIO) -> int:
    """How many bytes of an MP4 file lie behind its last whole box (ISO/IEC 14496-12, 4.2), where no box begins.

    FFmpeg ends there without a word when the boxes are fragments, whose number nothing tells.
    """
    end, at = file.seek(0, io.SEEK_END), 0
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size == 0:  # to the end
            return 0
        if size < 8 or at + size > end:
            break
        at += size
    return end - at


def wav_data(file: BinaryIO) -> tuple[int, int]:
    """Of a WAV file's samples: how many bytes its header promises, and how many are there; (0, 0): it has none."""
    end, at = file.seek(0, io.SEEK_END), 12
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        head = file.read(8)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"data":
            return size, end - at - 8
        if len(head) < 8:
            break
        at += 8 + size + size % 2
    return 0, 0


def _next(file: BinaryIO, form: str, start: int) -> int | None:
    """Where the next file begins that was joined to the one at ``start``."""
    joint = JOINTS[form]
    if form != "ogg":
        return _find(file, joint, start + 1)
    while True:  # over the pages that begin streams: they stand together where one file holds several, as video does
        start = _page_end(file, start)
        file.seek(start)
        if not joint.match(file.read(6)):
            return _find(file, joint, start)


def links(file: BinaryIO, form: str) -> Iterator[tuple[int, int | None]]:
    """(start, stop) of each file that was joined to one, as chained Ogg is and FLACs are; most files are one.

    FFmpeg reads on through joined MP3 and AAC by itself, and through chained Ogg as long as nothing changes.
    """
    start: int | None = 0
    while start is not None:
        stop = _next(file, form, start) if form in JOINTS else None
        yield start, stop
        start = stop
