"""What is done to samples before they are encoded: the limiter, and the joint of a prompt and its continuation."""

import numpy as np

from app.audio.samples import Samples
from model.constants import HOP_SAMPLES, MEL_LEFT_SAMPLES, frames_in
from model.inference.scoring import MIN_FRAMES

LIMIT_KNEE = 0.9  # full scale; above it the limiter bends


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
