"""Clips as other toolkits hand them over, as the model reads them."""

import numpy as np
import soxr
import torch
from torch import Tensor

from model.constants import SAMPLE_RATE_HZ


def mono_24khz(wav: Tensor, sample_rate_hz: int) -> Tensor:
    """(N,) or (channels, N) at ``sample_rate_hz`` -> (N,) float32 at the model's rate; channels are averaged."""
    mono = wav.detach().cpu().float()
    if mono.ndim > 1:
        mono = mono.mean(0)
    if sample_rate_hz == SAMPLE_RATE_HZ:
        return mono
    return torch.from_numpy(np.asarray(soxr.resample(mono.numpy(), sample_rate_hz, SAMPLE_RATE_HZ), dtype=np.float32))
