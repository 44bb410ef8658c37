"""The causal log-mel front end.

The mel of frame t is computed from a 1024-sample window that *ends* at sample 320 (t + 1), like the coarse token of
the same frame, and depends on nothing later. (A centred window would reach 192 samples into the token that the model is
asked to predict.) There is no normalisation over the clip: the bundle's fixed mean and deviation do that, in the model.
"""

from functools import cache

import torch
from torch import Tensor, nn

from model.codec.encodec_import import import_torchaudio_functional
from model.constants import HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, MEL_WINDOW_SAMPLES, SAMPLE_RATE_HZ

LOG_FLOOR = 1e-3  # a few times the noise of 16-bit audio in one band; digital silence is log(1e-3)


@cache
def mel_filter_bank(window_samples: int = MEL_WINDOW_SAMPLES, bands: int = MEL_BANDS) -> Tensor:
    """torchaudio's triangular filters, HTK scale, 0 to 12 kHz: (window_samples // 2 + 1, bands) float32."""
    bank: Tensor = import_torchaudio_functional().melscale_fbanks(
        window_samples // 2 + 1, 0.0, SAMPLE_RATE_HZ / 2, bands, SAMPLE_RATE_HZ
    )
    return bank


class LogMel(nn.Module):
    """Samples to log-mel frames, causal; no learned weights, no state.

    To run it chunk by chunk, pass the 704 samples that came before as ``left``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(MEL_WINDOW_SAMPLES), persistent=False)
        self.register_buffer("bank", mel_filter_bank(), persistent=False)
        self.window: Tensor
        self.bank: Tensor

    def forward(self, samples: Tensor, left: Tensor | None = None) -> Tensor:
        """Samples (B, N), and the (B, 704) before them or zeros, -> log-mel (B, N // 320, 64), natural log."""
        whole = samples.shape[-1] // HOP_SAMPLES * HOP_SAMPLES
        if left is None:
            left = samples.new_zeros(samples.shape[0], MEL_LEFT_SAMPLES)
        assert left.shape[-1] == MEL_LEFT_SAMPLES, f"left context of {left.shape[-1]} samples, not {MEL_LEFT_SAMPLES}"
        padded = torch.cat([left, samples[:, :whole]], dim=-1)
        if whole == 0:
            return samples.new_zeros(samples.shape[0], 0, MEL_BANDS)
        windows = padded.unfold(-1, MEL_WINDOW_SAMPLES, HOP_SAMPLES)  # (B, T, 1024)
        magnitude = torch.fft.rfft(windows * self.window).abs()  # (B, T, 513)
        return torch.log(magnitude @ self.bank + LOG_FLOOR)  # (B, T, 64)
