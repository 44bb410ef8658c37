"""What all tests share: one thread, a bundle of random weights and a signal that is a little like speech."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle, random_bundle, save_bundle
from model.codec.codec import Codec
from model.codec.config import CodecConfig
from tests.support.signals import enliven, make_speech_like

torch.set_num_threads(1)  # the tensors are small: more threads cost more than they bring


@pytest.fixture(scope="session")
def speech_like() -> Tensor:
    """Four seconds, (96000,) float32."""
    return make_speech_like(4.0)


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
def saved_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights on disk, for what loads one by its path; nobody may change it."""
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    save_bundle(random_bundle(), folder)
    return folder


@pytest.fixture(scope="session")
def bundle(speech_like: Tensor) -> Bundle:
    """Random weights, in the smallest preset; nobody may change it."""
    bundle = random_bundle("tiny")
    enliven(bundle.codec, speech_like)
    return bundle
