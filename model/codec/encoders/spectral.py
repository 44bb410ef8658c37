"""The `spectral` encoder: a fixed causal analysis of each frame, and ConvNeXt blocks at 75 Hz.

SEANet's strided convolutions must learn a filter bank before they can tell one pitch from another. Here the analysis is
given: log-mel and linear spectra, the energies of the semitones, autocorrelation, and how fast the low bins turn
(PitchDNN of Opus 1.5 reads pitch from the last two together). Every window ends with its frame, at sample 320 (t + 1),
so the encoder is causal by construction, and its state is nothing but samples and the convolutions' inputs.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.decoders.frame import CausalConv, ConvNeXtBlock, stream_blocks
from model.codec.interface import Encoder
from model.constants import HOP_SAMPLES, LATENT_DIM, SAMPLE_RATE_HZ
from model.lm.mel import mel_filter_bank

MELS, MEL_WINDOW, MEL_FALL = 80, 1024, 192  # bands; samples; samples over which the window falls at its recent end
LOW_BINS, LOW_WINDOW, LOW_FALL = 160, 2048, 256  # of 11.7 Hz each: 0 to 1.9 kHz
TURN_BINS = 64  # of the same spectrum, whose phase advance is told: 0 to 750 Hz
NOTE_WINDOW, NOTE_FALL = 8192, 1024  # 2.9 Hz a bin: tells the semitones above 200 Hz, nearly those above 100 Hz
NOTES, NOTE_LOWEST_HZ = 96, 440.0 * 2 ** (-45 / 12)  # semitones from C1 (32.7 Hz) to B8 (7.9 kHz)
SHARP_NOTES = 56  # of them from the long window, those below 830 Hz; the rest from the window of 2048
LAGS, LAG_WINDOW = 96, 1280  # of the autocorrelation, spaced evenly in the logarithm from 490 down to 70 Hz
SUBFRAMES = 4  # levels of 80 samples
LEFT_SAMPLES = NOTE_WINDOW  # that must be at hand before a frame: 7872, and 320 more for the frame before it
FLOOR = 1e-4  # of full scale


def falling_window(samples: int, fall: int) -> Tensor:
    """A Hann window whose falling half lasts only ``fall`` samples, so that the newest ones count: (samples,)"""
    rise = samples - fall
    return torch.cat([torch.hann_window(2 * rise)[:rise], torch.hann_window(2 * fall)[fall:]])


def note_hertz() -> Tensor:
    """The pitch of each semitone, equal temperament, A = 440 Hz: (NOTES,) float64"""
    return NOTE_LOWEST_HZ * 2 ** (torch.arange(NOTES, dtype=torch.float64) / 12)


def note_filters(window: int, first: int, count: int) -> Tensor:
    """Which bins of a spectrum make up each semitone, triangles in the logarithm of frequency: (bins, count)

    A semitone narrower than the bins takes its share of the two bins beside it, so that none is empty.
    """
    hertz = note_hertz()[first : first + count]
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / window
    off = 12 * torch.log2(bins.clamp_min(1.0)[:, None] / hertz)  # semitones
    filters = (1 - off.abs()).clamp_min(0.0)
    near = (1 - (bins[:, None] - hertz).abs() * window / SAMPLE_RATE_HZ).clamp_min(0.0)
    return torch.maximum(filters, near).float()


class Analysis(nn.Module):
    """Samples to the features of each frame; no learned weights."""

    def __init__(self) -> None:
        super().__init__()
        lags = torch.exp(torch.linspace(math.log(70.0), math.log(490.0), LAGS)).reciprocal() * SAMPLE_RATE_HZ
        tables = {
            "mel_window": falling_window(MEL_WINDOW, MEL_FALL),
            "mel_bank": mel_filter_bank(MEL_WINDOW, MELS),
            "low_window": falling_window(LOW_WINDOW, LOW_FALL),
            "note_window": falling_window(NOTE_WINDOW, NOTE_FALL),
            "sharp": note_filters(NOTE_WINDOW, 0, SHARP_NOTES),
            "broad": note_filters(LOW_WINDOW, SHARP_NOTES, NOTES - SHARP_NOTES),
            "lag_window": torch.hann_window(LAG_WINDOW),
            "lags": torch.unique(lags.round().long()),
            # the angle by which a bin's phase advances in a frame when its frequency is the bin's own
            "expected": torch.exp(-2j * math.pi * torch.arange(TURN_BINS) * HOP_SAMPLES / LOW_WINDOW),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.mel_window: Tensor
        self.mel_bank: Tensor
        self.low_window: Tensor
        self.note_window: Tensor
        self.sharp: Tensor
        self.broad: Tensor
        self.lag_window: Tensor
        self.lags: Tensor
        self.expected: Tensor

    @property
    def dim(self) -> int:
        """Features of a frame."""
        return MELS + LOW_BINS + 2 * TURN_BINS + NOTES + len(self.lags) + SUBFRAMES

    def forward(self, samples: Tensor, left: Tensor | None = None) -> dict[str, Tensor]:
        """Samples (B, 320 T), and the (B, 8192) before them or zeros, -> features (B, T, n) each, of about unit size"""
        if left is None:
            left = samples.new_zeros(len(samples), LEFT_SAMPLES)
        padded = torch.cat([left, samples], dim=-1)

        def windows(size: int, window: Tensor, extra: int = 0) -> Tensor:  # (B, T + extra, size)
            return padded[:, LEFT_SAMPLES + HOP_SAMPLES * (1 - extra) - size :].unfold(-1, size, HOP_SAMPLES) * window

        mel = torch.fft.rfft(windows(MEL_WINDOW, self.mel_window)).abs() * (2 / self.mel_window.sum())
        low = torch.fft.rfft(windows(LOW_WINDOW, self.low_window, extra=1))  # (B, T + 1, 1025)
        turned = low[:, 1:, :TURN_BINS] * low[:, :-1, :TURN_BINS].conj() * self.expected
        turned = turned / (turned.abs() + 1e-3)
        low = low[:, 1:].abs() * (2 / self.low_window.sum())
        long = torch.fft.rfft(windows(NOTE_WINDOW, self.note_window)).abs() * (2 / self.note_window.sum())
        notes = torch.cat([long.square() @ self.sharp, low.square() @ self.broad], -1)
        recent = windows(LAG_WINDOW, self.lag_window)
        power = torch.fft.rfft(recent, n=2 * 1024).abs().square()
        correlation = torch.fft.irfft(power)
        levels = samples.view(len(samples), -1, SUBFRAMES, HOP_SAMPLES // SUBFRAMES).square().mean(-1)
        return {
            "mel": (torch.log(mel @ self.mel_bank + FLOOR) + 5.0) / 2.0,
            "low": (torch.log(low[..., :LOW_BINS] + FLOOR) + 6.0) / 2.5,
            "turn": torch.cat([turned.real, turned.imag], -1),
            "notes": (torch.log(notes + FLOOR**2) + 13.0) / 5.0,
            "lags": correlation[..., self.lags] / (correlation[..., :1] + FLOOR) * 2.0,
            "levels": torch.log(levels + 1e-7) / 3.0 + 3.0,
        }


class SpectralState(NamedTuple):
    """What a `spectral` encoder carries from chunk to chunk."""

    samples: Tensor  # (B, 8192), those before the chunk
    entry: Tensor  # (B, features, 2), what the first convolution saw last
    blocks: tuple[Tensor, ...]  # (B, dim, kernel - 1) each, of the blocks'


class SpectralEncoder(Encoder):
    """Samples to latents at 75 Hz."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.analysis = Analysis()
        self.entry = CausalConv(self.analysis.dim, dim, 3)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, expansion, kernel, blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, LATENT_DIM)

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        return cls(config.encoder_dim, config.encoder_blocks, config.encoder_expansion, config.encoder_kernel)

    def latents(self, features: dict[str, Tensor]) -> Tensor:
        """What `Analysis` gives -> latents (B, 128, T)"""
        x = self.entry(torch.cat(list(features.values()), -1).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(self.norm(x.transpose(1, 2)))
        return out.transpose(1, 2)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, 1, 320 T) -> (B, 128, T)"""
        return self.latents(self.analysis(samples[:, 0]))

    def stream(self, samples: Tensor, state: SpectralState | None) -> tuple[Tensor, SpectralState]:
        samples = samples[:, 0]
        left = samples.new_zeros(len(samples), LEFT_SAMPLES) if state is None else state.samples
        last = torch.cat([left, samples], -1)[:, -LEFT_SAMPLES:].clone()
        features = torch.cat(list(self.analysis(samples, left).values()), -1)
        x, entry = self.entry.stream(features.transpose(1, 2), state and state.entry)
        x, blocks = stream_blocks(self.blocks, x, state and state.blocks)
        latents: Tensor = self.out(self.norm(x.transpose(1, 2)))
        return latents.transpose(1, 2), SpectralState(last, entry, blocks)
