"""Pitch of speech by autocorrelation: what says whether a codec's voiced sounds have the pitch of the original."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.training.configs import DecoderTraining, SourceFilterTraining


@dataclass(frozen=True)
class PitchTracker:
    """How pitch is found. The defaults are what figures are measured with; a training's targets are its config's."""

    window: int = 1024  # samples, around the middle of the frame's beginning
    shortest: int = 50  # periods in samples: 480 to 71 Hz
    longest: int = 340
    voiced: float = 0.55  # of the normalised autocorrelation
    quiet: float = 0.003  # root mean square below which a frame counts as silent
    octave_cost: float = 0.08  # taken off per octave of longer period: twice the period fits as well

    @classmethod
    def of(cls, training: SourceFilterTraining | DecoderTraining) -> "PitchTracker":
        """What finds the pitch that a training teaches."""
        return cls(
            training.pitch_window, training.pitch_shortest, training.pitch_longest, training.pitch_voiced,
            training.pitch_quiet, training.pitch_octave_cost,
        )  # fmt: skip


MEASURE = PitchTracker()


def pitch(samples: Tensor, tracker: PitchTracker = MEASURE) -> tuple[Tensor, Tensor]:
    """Samples (B, N) -> pitch in Hz and whether voiced, (B, N // 320) each."""
    size, shortest, longest = tracker.window, tracker.shortest, tracker.longest
    frames = samples.shape[-1] // HOP_SAMPLES
    around = F.pad(samples, (size // 2, size // 2)).unfold(-1, size, HOP_SAMPLES)[:, :frames]
    around = around - around.mean(-1, keepdim=True)
    window = torch.hann_window(size, device=samples.device)

    def correlation(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, n=2 * size)
        out: Tensor = torch.fft.irfft(spectrum.real**2 + spectrum.imag**2)[..., : longest + 2]
        return out

    own, of_window = correlation(around * window), correlation(window)
    taper = (of_window / of_window[0]).clamp_min(0.25)
    level = own[..., :1].clamp_min(1e-6)
    normal = own / level / taper
    periods = torch.arange(shortest, longest, device=samples.device)
    strength, best = (normal[..., shortest:longest] - tracker.octave_cost * torch.log2(periods / shortest)).max(-1)
    lag = best + shortest
    before, at, after = (normal.gather(-1, (lag + step)[..., None])[..., 0] for step in (-1, 0, 1))
    bend = (before - 2 * at + after).clamp_max(-1e-6)
    exact = lag + (0.5 * (before - after) / bend).clamp(-0.5, 0.5)  # the top of a parabola through three points
    voiced = (strength > tracker.voiced) & (around.square().mean(-1).sqrt() > tracker.quiet)
    return SAMPLE_RATE_HZ / exact, voiced


def pitch_match(made: Tensor, real: Tensor, cents: float = 50.0) -> float | None:
    """Share of the real signal's voiced frames whose pitch the made one has, within ``cents``; None without any.

    made, real: (N,). A frame that is not voiced in the made signal is a miss.
    """
    (wanted, voiced), (found, also) = pitch(real[None]), pitch(made[None])
    if not bool(voiced.any()):
        return None
    near = also & ((found / wanted).log2().abs() < cents / 1200)
    return float(near[voiced].float().mean())
