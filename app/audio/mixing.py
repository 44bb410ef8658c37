"""What is done to samples: channels to one; the limiter, and the joint of a prompt and its continuation."""

import numpy as np

from app.audio.formats import Samples
from app.audio.notices import Notice
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, SAMPLE_RATE_HZ, frames_in
from model.inference.scoring import MIN_FRAMES

LIMIT_KNEE = 0.9  # full scale; above it the limiter bends


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

    def notices(self, samples: Samples) -> tuple[Notice, ...]:
        """What is to be told of (N,) samples that came of it."""
        if self._mixed < CANCELLED * self._apart:
            lost = "the two channels are nearly each other's inverse, and their mean, which is what is heard, is not"
            return (Notice("phase_inverted", f"{lost} the recording: send one channel, or invert one"),)
        if len(samples) >= SILENCE_SAMPLES and np.abs(samples).max() < SILENCE:
            return (Notice("silent_clip", "the clip is silent"),)
        return ()


def limit(samples: Samples) -> Samples:
    """Bends what lies above 0.9 of full scale so that it never passes 1; for samples that the model made."""
    loud = np.abs(samples)
    bent = LIMIT_KNEE + (1 - LIMIT_KNEE) * np.tanh((loud - LIMIT_KNEE) / (1 - LIMIT_KNEE))
    return np.where(loud <= LIMIT_KNEE, samples, np.copysign(bent, samples)).astype(np.float32)


JOINT_SAMPLES = 240  # 10 ms of crossfade, inside the prompt: the length of neither part changes


def opening(prompt: Samples, tail: Samples) -> Samples:
    """The prompt's own whole frames, as they stand in front of what is made.

    Their last 10 ms fade into the codec's version of them (``tail``), which the made samples go on from.
    """
    own = prompt[: frames_in(len(prompt)) * HOP_SAMPLES].copy()
    fade = (0.5 - 0.5 * np.cos(np.pi * (np.arange(JOINT_SAMPLES) + 0.5) / JOINT_SAMPLES)).astype(np.float32)
    own[-JOINT_SAMPLES:] = own[-JOINT_SAMPLES:] * (1 - fade) + limit(tail[-JOINT_SAMPLES:]) * fade
    return own


def join(prompt: Samples, tail: Samples, made: Samples) -> Samples:
    """The prompt's own whole frames and then what was made, limited."""
    return np.concatenate([opening(prompt, tail), limit(made)])


assert JOINT_SAMPLES <= MEL_LEFT_SAMPLES and JOINT_SAMPLES <= MIN_FRAMES * HOP_SAMPLES
