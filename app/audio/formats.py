"""The formats that a continuation can be sent in: name, media type, and which can be sent while they are made.

The values and messages of the API, suffixes, and the command line with its help follow from here, so numpy is not
imported; `app.audio.encode` has each one's encoder.
"""

from collections.abc import Collection
from typing import Literal, get_args

# Literals, since types are checked before anything runs: `MEDIA_TYPES` without one of them is an error of mypy's.
Format = Literal["wav", "flac", "opus", "mp3", "pcm"]
StreamFormat = Literal["wav", "pcm", "opus", "mp3"]
MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav", "flac": "audio/flac", "pcm": "audio/pcm", "opus": "audio/ogg", "mp3": "audio/mpeg",
}  # fmt: skip

STREAMED: tuple[StreamFormat, ...] = get_args(StreamFormat)
SUFFIXES: dict[str, Format] = {f".{form}": form for form in get_args(Format)}
STREAM_SUFFIXES: dict[str, StreamFormat] = {f".{form}": form for form in STREAMED}


def listed(names: Collection[str], last: str) -> str:
    """Names as a sentence has them, the last one behind a word: "wav, pcm or mp3"."""
    *most, end = names
    return f"{', '.join(most)} {last} {end}"
