"""Distances between a made signal and the real one, for training a codec and for judging it.

What a training may choose is an argument, whose value is in its config (`model.training.configs`); the defaults are
what figures are measured with. The other numbers define a measure (a scale, a standard) or guard a root, a logarithm.
"""

import torch
from torch import Tensor, nn

from model.codec.encoders.spectral import note_filters
from model.constants import SAMPLE_RATE_HZ
from model.lm.mel import mel_filter_bank
from model.training.configs import SourceFilterTraining, Windows

MEASURED = ((2048, 128), (1024, 80), (512, 40))  # six resolutions cost more time than they are worth


class SpectralLoss(nn.Module):
    """Distance of two signals at several STFT resolutions: log-mel L1 plus spectral convergence.

    floor: of full scale; what lies below is not heard beside speech.
    """

    def __init__(self, windows: Windows = MEASURED, floor: float = 1e-4) -> None:
        super().__init__()
        self.resolutions, self.floor = len(windows), floor
        for index, (window, mels) in enumerate(windows):
            self.register_buffer(f"window{index}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"bank{index}", mel_filter_bank(window, mels), persistent=False)

    def _magnitude(self, samples: Tensor, index: int) -> Tensor:
        window = getattr(self, f"window{index}")
        spectrum = torch.stft(
            samples, len(window), hop_length=len(window) // 4, window=window, center=True, pad_mode="constant",
            return_complex=True,
        )  # fmt: skip
        power = spectrum.real**2 + spectrum.imag**2
        return torch.sqrt(power + 1e-10) * (2 / float(window.sum()))  # a full-scale sine gives 1: (B, F, T)

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N), (B, N) -> log-mel distance in nats (natural log), spectral convergence."""
        log_mel, convergence = made.new_zeros(()), made.new_zeros(())
        for index in range(self.resolutions):
            bank = getattr(self, f"bank{index}")
            a, b = self._magnitude(made, index), self._magnitude(real, index)
            mel_a, mel_b = (m.transpose(1, 2) @ bank for m in (a, b))
            log_mel = log_mel + (torch.log(mel_a + self.floor) - torch.log(mel_b + self.floor)).abs().mean()
            difference = torch.linalg.vector_norm(a - b, dim=(1, 2))
            convergence = convergence + (difference / (torch.linalg.vector_norm(b, dim=(1, 2)) + 0.1)).mean()
        return log_mel / self.resolutions, convergence / self.resolutions


class EnvelopeLoss(nn.Module):
    """One minus the correlation of band envelopes over 0.4 s: what carries words, without regard to phase.

    A differentiable relative of STOI (Taal et al., 2011): 15 third-octave bands from 150 Hz, windows of 25 ms,
    segments of 30 windows, which are STOI's own. A segment does not count whose power is below ``heard`` of the
    loudest one's; one begins ``stride`` windows after the other.
    Figures of STOI on a codec trained with it should be read beside others.
    """

    WINDOW, HOP, FFT, SEGMENT = 600, 300, 1024, 30

    def __init__(self, heard: float = 1e-3, stride: int = 10) -> None:
        super().__init__()
        self.heard, self.stride = heard, stride
        centres = 150.0 * 2.0 ** (torch.arange(15) / 3)
        bins = torch.arange(self.FFT // 2 + 1) * SAMPLE_RATE_HZ / self.FFT
        low, high = centres * 2 ** (-1 / 6), centres * 2 ** (1 / 6)
        bands = (bins[:, None] >= low) & (bins[:, None] < high)
        self.register_buffer("bands", bands.float(), persistent=False)  # (513, 15)
        self.register_buffer("window", torch.hann_window(self.WINDOW), persistent=False)
        self.bands: Tensor
        self.window: Tensor

    def _segments(self, samples: Tensor) -> Tensor:
        """(B, N) -> (B, 15, S, 30) band envelopes"""
        spectrum = torch.stft(samples, self.FFT, self.HOP, self.WINDOW, self.window, center=False, return_complex=True)
        power = spectrum.real**2 + spectrum.imag**2
        envelope = torch.sqrt(power.transpose(1, 2) @ self.bands + 1e-6)  # (B, T, 15)
        return envelope.transpose(1, 2).unfold(2, self.SEGMENT, self.stride)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """(B, N), (B, N) -> mean over segments that hold sound; N at least 0.5 s"""
        a, b = self._segments(made), self._segments(real)
        level = b.square().mean(-1)
        heard = (level > self.heard * level.amax((1, 2), keepdim=True)).float()
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
        match = (a * b).sum(-1) / torch.sqrt(a.square().sum(-1) * b.square().sum(-1) + 1e-8)
        return 1 - (match * heard).sum() / heard.sum().clamp_min(1.0)


class LoudnessLoss(nn.Module):
    """Distance of specific loudness in Bark bands, with masking; sound that was added weighs more than sound missing.

    A differentiable relative of PESQ's disturbances (ITU-T P.862; PMSQE, Martin-Donas et al., 2018): windows of 32 ms,
    bands of 0.4 Bark from 80 Hz to 8 kHz, Zwicker's loudness with Terhardt's threshold in quiet, and P.862's bounds of
    what counts as added. ``level_db``: sound pressure that a signal is played at; ``masking``: share of the softer
    loudness that a difference has to exceed; ``added``: weight of what was added, beside all differences.
    Figures of PESQ on a codec trained with it should be read beside others.
    """

    WINDOW, HOP, BARK, EXPONENT = 768, 384, 0.4, 0.23

    def __init__(self, level_db: float = 72.0, masking: float = 0.25, added: float = 0.3) -> None:
        super().__init__()
        self.level_db, self.masking, self.added = level_db, masking, added
        hertz = torch.arange(self.WINDOW // 2 + 1) * SAMPLE_RATE_HZ / self.WINDOW
        bark = 26.81 * hertz / (1960.0 + hertz) - 0.53  # Traunmueller (1990)
        low, high = 26.81 * 80.0 / 2040.0 - 0.53, 26.81 * 8000.0 / 9960.0 - 0.53
        centres = torch.arange(low + self.BARK / 2, high, self.BARK)
        overlap = (1 - (bark[:, None] - centres).abs() / self.BARK).clamp_min(0.0)  # triangles that sum to one
        middle = 1960.0 * (centres + 0.53) / (26.28 - centres) / 1000.0  # kHz
        quiet = 3.64 * middle**-0.8 - 6.5 * torch.exp(-0.6 * (middle - 3.3) ** 2) + 1e-3 * middle**4  # dB SPL
        self.register_buffer("bands", overlap, persistent=False)  # (385, bands)
        self.register_buffer("threshold", 10 ** (quiet / 10), persistent=False)  # (bands,) power
        self.register_buffer("window", torch.hann_window(self.WINDOW), persistent=False)
        self.bands: Tensor
        self.threshold: Tensor
        self.window: Tensor

    def _power(self, samples: Tensor, scale: Tensor) -> Tensor:
        """(B, N) -> (B, T, bands): 1 is 0 dB SPL"""
        spectrum = torch.stft(
            samples, self.WINDOW, self.HOP, window=self.window, center=False, return_complex=True
        ).transpose(1, 2)
        return (spectrum.real**2 + spectrum.imag**2) @ self.bands * scale[:, None, None]

    def _loudness(self, power: Tensor) -> Tensor:
        return (self.threshold / 0.5) ** self.EXPONENT * (
            (0.5 + 0.5 * power / self.threshold) ** self.EXPONENT - 1
        ).clamp_min(0.0)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """(B, N), (B, N) -> mean over frames, near 1 for a coarse codec"""
        level = real.square().mean(1).clamp_min(1e-6) * self.window.square().sum() * self.WINDOW / 2
        scale = 10 ** (self.level_db / 10) / level
        a, b = self._power(made, scale), self._power(real, scale)
        loud_a, loud_b = self._loudness(a), self._loudness(b)
        masked = self.masking * torch.minimum(loud_a, loud_b).detach()
        distance = (loud_a - loud_b).abs() - masked
        distance = distance.clamp_min(0.0)
        added = ((a + 1e3) / (b + 1e3)).detach() ** 1.2
        added = torch.where(added < 3.0, torch.zeros_like(added), added.clamp_max(12.0))
        both = torch.sqrt(distance.square().mean(-1) + 1e-6)
        extra = (distance * added).mean(-1)
        return (both + self.added * extra).mean()


class ToneLoss(nn.Module):
    """Distance of two signals: log-mel, square roots of all magnitudes, and the low notes in a window that tells them.

    The square root stands between a linear distance, which hears nothing but peaks, and a logarithm, which hears the
    floor as loud as the peaks (as in FARGAN's training, arXiv 2405.21069).
    """

    def __init__(self, training: SourceFilterTraining) -> None:
        super().__init__()
        self.windows, self.floor = training.tone_windows, training.tone_floor
        self.note_hop, self.note_bins = training.note_hop, training.note_bins
        for size, mels in self.windows:
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)
            self.register_buffer(f"bank{size}", mel_filter_bank(size, mels), persistent=False)
        self.register_buffer("note_window", torch.hann_window(training.note_window), persistent=False)
        filters = note_filters(training.note_window, 0, training.notes)[: self.note_bins]
        self.register_buffer("note_bank", filters, persistent=False)
        self.note_window: Tensor
        self.note_bank: Tensor

    @staticmethod
    def _magnitude(samples: Tensor, window: Tensor, hop: int) -> Tensor:
        """(B, N) -> (B, T, bins)"""
        spectrum = torch.stft(samples, len(window), hop, window=window, pad_mode="constant", return_complex=True)
        power = spectrum.real**2 + spectrum.imag**2
        return (torch.sqrt(power + 1e-10) * (2 / window.sum())).transpose(1, 2)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """(B, N), (B, N) -> mean distance"""
        total = made.new_zeros(())

        def compared(a: Tensor, b: Tensor, bank: Tensor, power: int) -> Tensor:
            floor = self.floor**power
            log = (torch.log(a**power @ bank + floor) - torch.log(b**power @ bank + floor)).abs().mean() / power
            roots_a, roots_b = a.sqrt(), b.sqrt()
            return log + ((roots_a - roots_b).abs().mean((1, 2)) / (roots_b.mean((1, 2)) + 1e-3)).mean()

        for size, _ in self.windows:
            window, bank = getattr(self, f"window{size}"), getattr(self, f"bank{size}")
            a = self._magnitude(made, window, size // 4)
            with torch.no_grad():
                b = self._magnitude(real, window, size // 4)
            total = total + compared(a, b, bank, 1)
        a = self._magnitude(made, self.note_window, self.note_hop)[..., : self.note_bins]
        with torch.no_grad():
            b = self._magnitude(real, self.note_window, self.note_hop)[..., : self.note_bins]
        return (total + compared(a, b, self.note_bank, 2)) / (len(self.windows) + 1)
