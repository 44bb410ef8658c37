"""Signals and weights that make tests mean something."""

import numpy as np
import torch
from torch import Tensor

from model.codec.codec import Codec
from model.constants import SAMPLE_RATE_HZ
from model.training.train_codec import initialise


def make_speech_like(seconds: float, seed: int = 0) -> Tensor:
    """Voiced and hissing syllables with pauses between them, (N,) float32 within -1 and 1."""
    rng = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE_HZ)
    times = np.arange(count) / SAMPLE_RATE_HZ
    pitch = 120 * 2 ** (0.3 * np.sin(2 * np.pi * 0.7 * times + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    formant = 900 + 500 * np.sin(2 * np.pi * 1.3 * times + rng.uniform(0, 6))
    voiced = sum(np.exp(-(((k * pitch - formant) / 500) ** 2)) * np.sin(k * phase) for k in range(1, 25))
    hiss = rng.standard_normal(count) * (np.sin(2 * np.pi * 2.1 * times + rng.uniform(0, 6)) > 0.7)
    syllables = np.clip(np.sin(2 * np.pi * 3.0 * times + rng.uniform(0, 6)) + 0.5, 0, 1)
    mixed = (0.3 * voiced + 0.1 * hiss) * syllables + 0.001 * rng.standard_normal(count)
    return torch.from_numpy(np.clip(mixed, -1, 1).astype(np.float32))


def enliven(codec: Codec, samples: Tensor) -> None:
    """Random weights that code a signal with hundreds of different codes; PyTorch's own init gives the same few."""
    initialise(codec, samples[None])
    generator = torch.Generator().manual_seed(5)
    for stage, layer in enumerate(codec.quantizer.vq.layers):
        book = layer._codebook.embed
        book.copy_(torch.randn(book.shape, generator=generator) * 0.7**stage)
