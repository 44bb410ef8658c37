"""The formats that a continuation can be sent in: whatever FFmpeg or libsndfile writes is one entry here.

The values and messages of the API, suffixes, and the command line with its help follow from here, so numpy is not
imported; `app.audio.encode` writes what the entries say.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple, get_args

from model.constants import SAMPLE_RATE_HZ

# Literals, since types are checked before anything runs: `FORMATS` without one of them is an error of mypy's.
Format = Literal["wav", "flac", "opus", "mp3", "pcm"]
StreamFormat = Literal["wav", "pcm", "opus", "mp3"]


class Codec(NamedTuple):
    """How FFmpeg encodes a format while it is made."""

    name: str
    container: str
    sample_format: Literal["s16", "s16p"]
    frame_samples: int
    bit_rate: int
    options: dict[str, str]  # of the codec
    container_options: dict[str, str]


class FormatEntry(NamedTuple):
    """One format: PCM, unless a codec or libsndfile writes it."""

    media_type: str
    codec: Codec | None = None
    libsndfile: str | None = None  # its name of a container of 16 bits; the file is written as a whole


FORMATS: dict[Format, FormatEntry] = {
    "wav": FormatEntry("audio/wav"),
    "flac": FormatEntry("audio/flac", libsndfile="FLAC"),
    "pcm": FormatEntry("audio/pcm"),
    "opus": FormatEntry(
        "audio/ogg",
        Codec(
            "libopus", "ogg", "s16", frame_samples=SAMPLE_RATE_HZ // 50, bit_rate=48_000,  # 20 ms: its own default
            options={"frame_duration": "20"}, container_options={"page_duration": "20000"},  # a page for each frame
        ),
    ),
    "mp3": FormatEntry(
        "audio/mpeg",
        Codec(
            "libmp3lame", "mp3", "s16p", frame_samples=576, bit_rate=64_000,  # 24 ms: MPEG-2 Layer III
            # no tag with the length in front, which only a finished file could have
            options={"reservoir": "0"}, container_options={"write_xing": "0", "id3v2_version": "0"},
        ),
    ),
}  # fmt: skip

MEDIA_TYPES: dict[Format, str] = {name: entry.media_type for name, entry in FORMATS.items()}
STREAMED: tuple[StreamFormat, ...] = get_args(StreamFormat)
SUFFIXES: dict[str, Format] = {f".{form}": form for form in get_args(Format)}
STREAM_SUFFIXES: dict[str, StreamFormat] = {f".{form}": form for form in STREAMED}


def listed(names: Collection[str], last: str) -> str:
    """Names as a sentence has them, the last one behind a word: "wav, pcm or mp3"."""
    *most, end = names
    return f"{', '.join(most)} {last} {end}"
