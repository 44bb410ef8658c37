"""How much like the real music a made one is: whether it is in tune, and whether it plays the same notes."""

import torch
from torch import Tensor

from model.constants import SAMPLE_RATE_HZ

WINDOW, HOP = 8192, 2048  # samples: 2.9 Hz a bin, 85 ms apart
LOWEST_HZ, HIGHEST_HZ = 100.0, 2000.0  # of the peaks that count
PEAK_SHARE = 0.03  # of a window's highest peak, below which one does not count
QUIET_SHARE = 0.05  # of the clip's level, below which a window does not count
NOTE_LOWEST_HZ, NOTE_HIGHEST_HZ, NOTES = 80.0, 2100.0, 60  # semitones whose energies are compared


def _spectra(samples: Tensor) -> Tensor:
    """(N,), N >= 8192 -> magnitudes (windows, 4097) float64"""
    windows = samples.double().unfold(-1, WINDOW, HOP)
    spectra: Tensor = torch.fft.rfft(windows * torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)).abs()
    return spectra


def in_tune(samples: Tensor, cents: float = 20.0) -> float | None:
    """Share of spectral peak energy, 100 Hz to 2 kHz, within ``cents`` of an equal-tempered semitone of A = 440 Hz.

    samples: (N,) at 24 kHz; None for less than 0.35 s, or without a peak. Chance is 0.40 at 20 cents; a piano has 0.9
    and more, a buzz at multiples of 75 Hz about chance.
    """
    if len(samples) < WINDOW:
        return None
    levels = samples.double().unfold(-1, WINDOW, HOP).square().mean(-1).sqrt()
    spectra = _spectra(samples)[levels >= QUIET_SHARE * samples.double().square().mean().sqrt() + 1e-12]
    first, last = int(LOWEST_HZ * WINDOW / SAMPLE_RATE_HZ), int(HIGHEST_HZ * WINDOW / SAMPLE_RATE_HZ)
    left, at, right = (spectra[:, first + step : last + step] for step in (-1, 0, 1))
    if not at.numel():
        return None
    peak = (at > left) & (at >= right) & (at > PEAK_SHARE * at.amax(1, keepdim=True))
    if not bool(peak.any()):
        return None
    a, b, c = (torch.log(part[peak] + 1e-12) for part in (left, at, right))
    bins = torch.arange(first, last).expand_as(at)[peak] + 0.5 * (a - c) / (a - 2 * b + c)
    semitones = 12 * torch.log2(bins * SAMPLE_RATE_HZ / WINDOW / 440.0)
    near = (semitones - semitones.round()).abs() * 100 <= cents
    energy = at[peak].square()
    return float(energy[near].sum() / energy.sum())


def note_levels(samples: Tensor) -> Tensor:
    """Root of the energy in each of 60 semitones from 80 to 2100 Hz: (N,) at 24 kHz -> (windows, 60)"""
    hertz = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / WINDOW
    used = (hertz > NOTE_LOWEST_HZ) & (hertz < NOTE_HIGHEST_HZ)
    notes = torch.round(12 * torch.log2(hertz[used] / 440.0)).long() + NOTES // 2
    spectra = _spectra(samples)[:, used].square()
    return torch.zeros(len(spectra), NOTES, dtype=torch.float64).index_add_(1, notes, spectra).sqrt()


def same_notes(made: Tensor, real: Tensor) -> float | None:
    """Mean cosine of the semitones' levels, window by window; None for less than 0.35 s. (N,), (N,) at 24 kHz

    1 for the same notes at the same strengths; another piano piece has about 0.38.
    """
    if min(len(made), len(real)) < WINDOW:
        return None
    a, b = note_levels(made), note_levels(real)
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return float(((a * b).sum(1) / (lengths + 1e-9)).mean())


def chroma_similarity(made: Tensor, real: Tensor) -> float | None:
    """Cosine of two clips' mean chroma (the energies of the twelve pitch classes); None for less than 0.35 s.

    (N,), (M,) at 24 kHz, which need not be equally long: tells whether a continuation stays in its prompt's key.
    """
    if min(len(made), len(real)) < WINDOW:
        return None
    a, b = (note_levels(own).square().sum(0).view(-1, 12).sum(0).sqrt() for own in (made, real))
    return float((a @ b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b) + 1e-9))
