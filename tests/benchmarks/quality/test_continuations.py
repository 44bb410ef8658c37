"""The logic of the quality figures, with stand-ins for the packages that only the script needs (extra `quality`)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.common import Subject
from benchmarks.quality import acoustics, latents
from benchmarks.quality import continuations as quality
from benchmarks.quality.continuations import Prompts, best, cut, make, measure, strangers, summary
from benchmarks.quality.continuing import continue_all
from benchmarks.quality.latents import Space, distance, pooled
from model.checkpoint import Bundle
from model.inference.sampling import SamplingOptions
from tests.support.signals import make_speech_like


def test_cut() -> None:
    size = 8 * 24_000
    speech = [
        ("a", torch.arange(2.5 * size)),
        ("b", torch.ones(size - 1)),
        ("c", torch.ones(size)),
        ("a", torch.ones(size)),
    ]
    prompts = cut(speech, per_speaker=2)
    assert prompts.speakers == ["a", "a", "c"]  # b is too short, and a has had its two
    assert prompts.prompts.shape == (3, 72_000) and prompts.truth.shape == (3, 120_000)
    assert prompts.truth[0, 0] == prompts.prompts[0, -1] + 1 and prompts.prompts[1, 0] == 5 * 24_000


def test_strangers_are_of_another_speaker() -> None:
    speakers = ["a", "a", "b", "c", "c", "c"]
    for seed in range(20):
        assert all(speakers[other] != own for own, other in zip(speakers, strangers(speakers, seed), strict=True))
    assert strangers(speakers, 1) == strangers(speakers, 1)


def test_pooled_is_of_the_encoder(bundle: Bundle, speech_like: Tensor) -> None:
    samples = speech_like[: 2 * 24_000].reshape(2, -1)  # 75 frames each: three pieces
    found = pooled(bundle, samples)
    assert found.shape == (2, 3, 256)
    latents = bundle.codec.encoder(samples[1:, None])[0, :, 25:50]
    assert found[1, 1, :128] == pytest.approx(latents.mean(1).numpy(), abs=1e-5)
    assert found[1, 1, 128:] == pytest.approx(latents.std(1).numpy(), abs=1e-5)


def test_space_keeps_the_directions_of_most_spread() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((500, 2))
    vectors = hidden @ rng.standard_normal((2, 10)) + 0.01 * rng.standard_normal((500, 10)) + 7
    space = Space.of(vectors, 2)
    projected = space.project(vectors)
    assert projected.shape == (500, 2)
    assert projected.mean(0) == pytest.approx(0, abs=1e-9)
    assert np.square(projected).sum() == pytest.approx(np.square((vectors - space.mean) / space.scale).sum(), rel=1e-2)


def test_distance_grows_and_has_an_interval() -> None:
    real = np.random.default_rng(0).standard_normal((30, 5, 4))
    same, near, far = (distance(real, real + shift) for shift in (0.0, 0.5, 2.0))
    assert same["mean"] == pytest.approx(0.0, abs=1e-6)
    assert near["mean"] == pytest.approx(1.0, rel=1e-6) and far["mean"] == pytest.approx(16.0, rel=1e-6)
    other = distance(real, np.random.default_rng(1).standard_normal((30, 5, 4)))
    assert 0 < other["low"] <= other["high"]


def test_summary_leaves_out_what_cannot_be_told() -> None:
    found = summary({"range": [None, 2.0, 4.0], "level": [None, None, None], "voiced": [0.5, 0.5, 0.5]})
    assert (found["range"]["mean"], found["range"]["prompts"]) == (3.0, 2)
    assert found["voiced"]["prompts"] == 3
    assert "level" not in found


def test_best() -> None:
    rows = {f"x, temperature {t:g}": {"distance": {"mean": d}} for t, d in ((0.7, 3.0), (0.9, 1.0), (1.0, 2.0))}
    assert best({"rows": rows}, "x", (0.7, 0.9, 1.0)) == 0.9


def test_made_once(bundle: Bundle, speech_like: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MADE_SECONDS", 1)
    monkeypatch.setattr(quality, "ROWS", 2)
    prompts = speech_like[: 3 * 30 * 320].reshape(3, -1)
    subject, options = Subject("tiny", bundle), SamplingOptions(0.9, seed=1)
    first = make(subject, prompts, options, tmp_path)
    assert first.tokens.shape == (3, 75) and first.samples.shape == (3, 24_000)
    kept = list(tmp_path.iterdir())
    assert len(kept) == 2
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return continue_all(*arguments)

    monkeypatch.setattr(quality, "continue_all", counted)
    again = make(subject, prompts, options, tmp_path)
    assert not calls and np.array_equal(first.tokens, again.tokens) and np.array_equal(first.samples, again.samples)
    make(subject, prompts, SamplingOptions(0.8, seed=1), tmp_path)
    make(Subject("tiny", bundle, masked=True), prompts, options, tmp_path)
    assert len(calls) == 4
    kept[0].unlink()  # as if cut off: only the missing batch is made again
    assert np.array_equal(make(subject, prompts, options, tmp_path).tokens, first.tokens)
    assert len(calls) == 5


def test_measure(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spectrum(samples: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(samples)[:4000]).reshape(20, 200).mean(1)
        unit: np.ndarray = power / np.linalg.norm(power)
        return unit

    monkeypatch.setattr(quality, "embedding", spectrum)
    monkeypatch.setattr(acoustics, "pitch", lambda wave: np.where(np.arange(200) % 2, 100.0 + np.arange(200) % 50, 0.0))
    monkeypatch.setattr(quality, "PROMPT_SECONDS", 1)
    monkeypatch.setattr(quality, "MADE_SECONDS", 1)
    monkeypatch.setattr(latents, "RESAMPLES", 10)
    pieces = torch.stack([make_speech_like(2.0, seed) for seed in range(4)])
    prompts = Prompts(["a", "b", "a", "c"], pieces[:, :24_000], pieces[:, 24_000:])
    subjects = [Subject("hybrid", bundle), Subject("coarse", bundle, masked=True, codebooks=1)]
    report = measure(subjects, prompts, (0.7, 1.0), 0, tmp_path)
    assert list(report["rows"]) == [
        "true continuation", "true continuation through the codec", "true continuation through 1 codebook(s)",
        "another speaker, through the codec", "hybrid, temperature 0.7", "hybrid, temperature 1",
        "coarse, temperature 0.7", "coarse, temperature 1",
    ]  # fmt: skip
    for name, row in report["rows"].items():
        assert {"similarity", "voiced", "range", "silence", "level", "distance"} <= set(row)
        assert row["voiced"]["mean"] == 0.5
        assert ("surprise" in row) == ("temperature" in name)
    assert report["rows"]["true continuation"]["distance"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert report["rows"]["true continuation through the codec"]["distance"]["mean"] > 0
    assert (report["prompts"], report["speakers"], report["vectors"]) == (4, 3, 12)
    assert report["rows"]["true continuation"]["similarity"]["mean"] > 0.5


if find_spec("pyworld") and find_spec("resemblyzer"):  # pip install -e ".[quality]"

    def test_pitch_of_a_tone() -> None:
        times = np.arange(24_000) / 24_000
        tone = sum((np.sin(2 * np.pi * 150 * k * times) / k for k in range(1, 10)), np.zeros(24_000))
        f0 = acoustics.pitch(0.1 * tone)
        assert acoustics.voiced_ratio(f0) > 0.9
        assert np.median(f0[f0 > 0]) == pytest.approx(150, abs=1)
        assert acoustics.voiced_ratio(acoustics.pitch(0.1 * np.random.default_rng(0).standard_normal(24_000))) < 0.3

    def test_embedding_is_of_the_voice_and_not_of_its_level() -> None:
        from model.training.voices import embedding

        speech = make_speech_like(3.0).numpy()
        one, louder = embedding(speech), embedding(3 * speech)
        assert np.linalg.norm(one) == pytest.approx(1, abs=1e-4)
        assert float(one @ louder) == pytest.approx(1, abs=1e-3)
        assert np.isfinite(embedding(np.zeros(48_000))).all()
