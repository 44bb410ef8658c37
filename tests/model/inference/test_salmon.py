"""The bundle as a model of SALMon: what its benchmark calls, and how it counts."""

from abc import ABC, abstractmethod

import numpy as np
import pytest
import soxr
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.inference.salmon import SalmonModel
from model.inference.scoring import TooShortError, score


class Published(ABC):
    """The interface that SALMon has models implement (`baselines/inference.py` there)."""

    @abstractmethod
    def log_likelihood(self, wavs: list[Tensor]) -> Tensor: ...

    @abstractmethod
    def to(self, device: str) -> "Published": ...


class Adapted(SalmonModel, Published):  # type: ignore[misc]  # `to` returns its own class, where the other has its own
    """Cannot be made unless both methods are there."""


@pytest.fixture(scope="module")
def clips(speech_like: Tensor) -> list[Tensor]:
    """As torchaudio loads them: (1, N), of different lengths."""
    return [speech_like[None, :30_000], speech_like[None, 20_000:48_000]]


def test_numbers_are_the_sums_of_the_score(bundle: Bundle, clips: list[Tensor]) -> None:
    got = Adapted(bundle, sample_rate_hz=24_000).to("cpu").log_likelihood(clips)
    assert got.shape == (2,) and got.dtype == torch.float32
    expected = [score(bundle, clip[0]) for clip in clips]
    assert got.tolist() == pytest.approx([one.log_likelihood for one in expected], rel=1e-6)
    mean = SalmonModel(bundle, mean_nll=True, sample_rate_hz=24_000).log_likelihood(clips)
    assert mean.tolist() == pytest.approx([-one.nll for one in expected], rel=1e-6)


def test_a_clip_is_scored_alike_in_any_company(bundle: Bundle, clips: list[Tensor]) -> None:
    model = SalmonModel(bundle)
    together = model.log_likelihood(clips)
    assert torch.equal(together, torch.cat([model.log_likelihood([clip]) for clip in clips]))


def test_rates_and_channels(bundle: Bundle, clips: list[Tensor]) -> None:
    """Clips come at 16 kHz; two channels are averaged, and a bare (N,) is a clip, too."""
    heard = torch.from_numpy(np.asarray(soxr.resample(clips[0][0].numpy(), 16_000, 24_000), dtype=np.float32))
    expected = score(bundle, heard).log_likelihood
    for clip in (clips[0], clips[0][0], clips[0].repeat(2, 1)):
        assert float(SalmonModel(bundle).log_likelihood([clip])[0]) == pytest.approx(expected, rel=1e-5)


def test_the_benchmarks_count(bundle: Bundle, clips: list[Tensor]) -> None:
    """Pairs, as SALMon counts them: 1 for the higher number, a half for a draw."""
    model = SalmonModel(bundle)
    with torch.no_grad():
        positive, negative = model.log_likelihood(clips), model.log_likelihood([clips[0], clips[0]])
    won = (positive > negative).float() + 0.5 * (positive == negative)
    assert won[0] == 0.5 and won[1] in (0.0, 1.0)


def test_too_short(bundle: Bundle) -> None:
    with pytest.raises(TooShortError):
        SalmonModel(bundle).log_likelihood([torch.zeros(1, 100)])
