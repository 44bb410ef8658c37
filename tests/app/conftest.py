"""The service under test: the real application and a real, tiny model, on an event loop of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from app.settings import Settings
from model.checkpoint import Bundle
from tests.support.service import Service, serving, sound


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, "config"):
        monkeypatch.delenv(f"WHISPERGPT_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def service(bundle: Bundle) -> Iterator[Service]:
    """A service with the default settings; tests leave it as they found it."""
    with serving(bundle, decoder_processes=True) as running:
        yield running


@pytest.fixture
def serve(bundle: Bundle) -> Iterator[Callable[..., Service]]:
    """Makes services with settings of the test's own."""
    with ExitStack() as spans:
        yield lambda **settings: spans.enter_context(serving(bundle, **settings))


@pytest.fixture(scope="session")
def to_file() -> Callable[..., bytes]:
    return sound


@pytest.fixture(scope="session")
def speech(speech_like: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One second and a third, not a whole number of frames."""
    samples: np.ndarray[Any, np.dtype[np.float32]] = speech_like[:32_111].numpy()
    return samples


@pytest.fixture(scope="session")
def clip(speech: Any) -> bytes:
    """A good prompt: FLAC."""
    return sound(speech, form="FLAC")
