"""Audio that comes in pieces: bare 16-bit samples at any rate become samples at 24 kHz, as far as they are known."""

import numpy as np
import soxr

from app.audio.samples import Samples
from app.errors import AudioInvalid
from model.constants import SAMPLE_RATE_HZ

SAMPLE_BYTES = 2


class IncomingPcm:
    """s16le, mono. ``seconds`` counts what came."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._resampler = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1)
        self.seconds = 0.0

    def seconds_of(self, data: bytes) -> float:
        """How long a piece is. Raises AudioInvalid for a part of a sample."""
        if len(data) % SAMPLE_BYTES:
            raise AudioInvalid(f"{len(data)} bytes are no whole samples of 16 bits", "audio")
        return len(data) / SAMPLE_BYTES / self._rate_hz

    def feed(self, data: bytes) -> Samples:
        """The next piece, as it is heard at 24 kHz; a resampler holds some back. Raises AudioInvalid."""
        self.seconds += self.seconds_of(data)
        return self._resampled(np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768))

    def finish(self) -> Samples:
        """What was held back."""
        return self._resampled(np.zeros(0, np.float32), last=True)

    def _resampled(self, samples: Samples, last: bool = False) -> Samples:
        if self._resampler is None:
            return samples
        made: Samples = self._resampler.resample_chunk(samples, last=last)
        return made
