"""Audio formats, and the form of samples in memory."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
BLOCK_FRAMES = 65_536  # libsndfile's Vorbis has crashed on larger ones


StreamFormat = Literal["wav", "pcm", "opus", "mp3"]
Format = Literal["wav", "flac", "pcm", "opus", "mp3"]
MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav", "flac": "audio/flac", "pcm": "audio/pcm", "opus": "audio/ogg", "mp3": "audio/mpeg",
}  # fmt: skip


SUFFIXES: dict[str, Format] = {".wav": "wav", ".flac": "flac", ".opus": "opus", ".mp3": "mp3", ".pcm": "pcm"}
