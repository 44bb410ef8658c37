"""Audio that comes in pieces: bare 16-bit samples at any rate become samples at 24 kHz, as far as they are known."""

from typing import Protocol

import numpy as np
import soxr

from app.audio.samples import Samples
from app.errors import AudioInvalid, AudioTooLong
from model.constants import SAMPLE_RATE_HZ

SAMPLE_BYTES = 2
SAMPLE_BYTES_DECODED = np.dtype(np.float32).itemsize


def too_long(seconds: float) -> AudioTooLong:
    return AudioTooLong(f"a prompt may have {seconds:g} s", "audio")


class Incoming(Protocol):
    """A stream of audio. ``seconds`` counts what came."""

    seconds: float

    async def feed(self, data: bytes, most_seconds: float) -> tuple[Samples, AudioInvalid | None]:
        """The next piece as samples at 24 kHz, some of which may be held back, and what was wrong with a part of it.

        Raises AudioTooLong for more than ``most_seconds``, upon which none of it is taken, AudioInvalid, DecoderLost.
        """

    async def finish(self) -> Samples:
        """What was held back: no more will come. Raises DecoderLost."""

    async def forget(self) -> None:
        """No more will come, and nothing of it is wanted. Raises DecoderLost."""


class IncomingPcm:
    """s16le, mono."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._resampler = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1)
        self.seconds = 0.0

    async def feed(self, data: bytes, most_seconds: float) -> tuple[Samples, AudioInvalid | None]:
        """The next piece; a resampler holds some back. Raises AudioTooLong, and AudioInvalid for a part of a sample."""
        if len(data) % SAMPLE_BYTES:
            raise AudioInvalid(f"{len(data)} bytes are no whole samples of 16 bits", "audio")
        seconds = len(data) / SAMPLE_BYTES / self._rate_hz
        if seconds > most_seconds:
            raise too_long(self.seconds + most_seconds)
        self.seconds += seconds
        return self._resampled(np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)), None

    async def finish(self) -> Samples:
        """What was held back."""
        return self._resampled(np.zeros(0, np.float32), last=True)

    async def forget(self) -> None:
        """Nothing is left of it."""

    def _resampled(self, samples: Samples, last: bool = False) -> Samples:
        if self._resampler is None:
            return samples
        made: Samples = self._resampler.resample_chunk(samples, last=last)
        return made
