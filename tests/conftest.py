"""What all tests share: one thread, a bundle of random weights and a signal that is a little like speech."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle, random_bundle
from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.constants import SAMPLE_RATE_HZ
from model.training.train_codec import lsuv

torch.set_num_threads(1)  # the tensors are small: more threads cost more than they bring


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


@pytest.fixture(scope="session")
def speech_like() -> Tensor:
    """Four seconds, (96000,) float32."""
    return make_speech_like(4.0)


def enliven(codec: Codec, samples: Tensor) -> None:
    """Random weights that code a signal with hundreds of different codes; PyTorch's own init gives the same few."""
    lsuv(codec, samples[None])
    generator = torch.Generator().manual_seed(5)
    for stage, layer in enumerate(codec.quantizer.vq.layers):
        book = layer._codebook.embed
        book.copy_(torch.randn(book.shape, generator=generator) * 0.7**stage)


@pytest.fixture(scope="session")
def make_codec(speech_like: Tensor) -> Callable[..., Codec]:
    """Makes codecs of random weights, tiny unless the given settings say otherwise."""

    def make(**settings: Any) -> Codec:
        config = CodecConfig(**{"n_filters": 2, "frame_dim": 16, "frame_blocks": 2, "lstm_layers": 1} | settings)
        before = torch.get_rng_state()
        torch.manual_seed(0)
        codec = Codec(config).eval().requires_grad_(False)
        torch.set_rng_state(before)
        enliven(codec, speech_like)
        return codec

    return make


@pytest.fixture(scope="session")
def bundle(speech_like: Tensor) -> Bundle:
    """Random weights, in the smallest preset; nobody may change it."""
    bundle = random_bundle("tiny")
    enliven(bundle.codec, speech_like)
    return bundle
