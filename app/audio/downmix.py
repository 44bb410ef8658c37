"""Channels to one, and what that loses. Without torch, which decoder processes do not load."""

import numpy as np

from app.audio.notices import Notice
from app.audio.samples import Samples
from model.constants import SAMPLE_RATE_HZ

SILENCE = 1e-4  # of full scale, -80 dB: three steps of 16 bits, which dither does not pass
SILENCE_SAMPLES = SAMPLE_RATE_HZ // 10  # shorter is a pause, or a window that is refused
CANCELLED = 0.01  # of the power of two channels is left in their mean: 20 dB are gone


class Downmix:
    """Channels to one, by their mean. Knows what that mean loses where two channels are each other's inverse."""

    def __init__(self) -> None:
        self._apart = self._mixed = 0.0  # energies

    def __call__(self, channels: Samples) -> Samples:
        """(C, N) -> (N,)."""
        mono: Samples = channels.mean(axis=0, dtype=np.float32)
        if len(channels) == 2:
            self._apart += float(np.vdot(channels, channels)) / 2
            self._mixed += float(np.vdot(mono, mono))
        return mono

    def notices(self, count: int, peak: float) -> tuple[Notice, ...]:
        """What is to be told of so many samples that came of it, of which the loudest is ``peak``."""
        if self._mixed < CANCELLED * self._apart:
            lost = "the two channels are nearly each other's inverse, and their mean, which is what is heard, is not"
            return (Notice("phase_inverted", f"{lost} the recording: send one channel, or invert one"),)
        if count >= SILENCE_SAMPLES and peak < SILENCE:
            return (Notice("silent_clip", "the clip is silent"),)
        return ()
