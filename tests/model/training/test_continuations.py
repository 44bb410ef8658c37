"""Figures of continuations: level, silence, traps; and that what is measured is what the server makes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.generate import generate
from model.inference.sampling import SamplingOptions
from model.training.continuations import (
    Continued,
    continued,
    drift,
    heard,
    longest_run,
    prompts_of,
    sound_figures,
    summary,
)
from model.training.pauses import shorten_pauses


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def test_level_is_that_of_what_sounds() -> None:
    made = np.concatenate([noise(1, 0.05), silence(1)])
    figures = sound_figures(made, noise(2, 0.1))
    assert figures["level_db"] == pytest.approx(-6.0, abs=0.3)
    assert figures["silent"] == pytest.approx(0.5, abs=0.02)
    assert figures["longest_silence"] == pytest.approx(1.0, abs=0.05)


def test_a_prompt_that_ends_in_silence_sets_the_same_floor() -> None:
    prompt = np.concatenate([noise(2, 0.1), silence(0.15)])
    assert sound_figures(noise(1, 0.1), prompt)["silent"] == 0.0


def test_all_silent() -> None:
    figures = sound_figures(silence(2), noise(1, 0.1))
    assert figures["silent"] == 1.0
    assert figures["longest_silence"] == pytest.approx(2.0)
    assert np.isfinite(figures["level_db"]) and figures["level_db"] < -60


def test_longest_run() -> None:
    assert longest_run(np.array([], dtype=bool)) == 0
    assert longest_run(np.array([True, True, False, True])) == 2
    assert longest_run(np.array([False])) == 0


def test_continuations_are_those_of_generate(bundle: Bundle, speech_like: Tensor) -> None:
    prompts = [speech_like[: 40 * HOP_SAMPLES], speech_like[30 * HOP_SAMPLES : 90 * HOP_SAMPLES]]
    runs = continued(bundle, prompts, seconds=0.2, seeds=(3, 4), temperature=0.9, rows=3)
    assert [(run.prompt, run.seed) for run in runs] == [(0, 3), (0, 4), (1, 3), (1, 4)]
    for run in runs:
        options = SamplingOptions(temperature=0.9, seed=run.seed)
        wanted = [frame.samples[0] for frame in generate(bundle, prompts[run.prompt], frames=15, options=options)]
        np.testing.assert_allclose(run.samples, torch.cat(wanted).numpy(), atol=1e-4)


def test_summary_counts_the_trapped(bundle: Bundle, speech_like: Tensor) -> None:
    runs = continued(bundle, [speech_like[: 40 * HOP_SAMPLES]], seconds=0.2, seeds=(1, 2))
    runs[0].figures["longest_silence"] = 1.6
    told = summary(runs)
    assert told["trapped"] == 0.5
    assert told["continuations"] == 2


def test_a_judge_hears_each_continuation_beside_its_own_prompt() -> None:
    def judge(made: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
        return {"ratio": float(made.mean() / prompt.mean())}

    prompts = [torch.full((HOP_SAMPLES,), 1.0), torch.full((HOP_SAMPLES,), 2.0)]
    steps = np.repeat(np.arange(1, 5, dtype=np.float32), 75 * HOP_SAMPLES)  # 1, 2, 3, 4 for a second each
    runs = [Continued(prompt, 0, steps, np.zeros(300, np.float32), {"nll": 0.0}) for prompt in (0, 1)]
    assert [run.figures for run in heard(runs, prompts, judge)] == [
        {"nll": 0.0, "ratio": 2.5},
        {"nll": 0.0, "ratio": 1.25},
    ]
    assert [own["ratio"] for own in drift(runs, prompts, 2.0, judge)] == [
        pytest.approx((1.5 + 0.75) / 2),
        pytest.approx((3.5 + 1.75) / 2),
    ]


def test_prompts_end_in_the_pause_that_is_asked_for() -> None:
    clips = [("long", torch.ones(5 * SAMPLE_RATE_HZ)), ("short", torch.ones(2 * SAMPLE_RATE_HZ))]
    (prompt,) = prompts_of(clips, 3.0, 0.5)
    assert len(prompt) == round(3.5 * SAMPLE_RATE_HZ)
    assert float(prompt[: 3 * SAMPLE_RATE_HZ].min()) == 1.0
    assert float(prompt[3 * SAMPLE_RATE_HZ :].abs().max()) == 0.0


class TestShortenPauses:
    def test_middles_and_ends(self) -> None:
        clip = np.concatenate(
            [silence(1), noise(1, 0.1), silence(2), noise(1, 0.1, 1), silence(0.3), noise(0.5, 0.1), silence(1)]
        )
        made = shorten_pauses(clip, 0.5, 0.2)
        assert len(made) / SAMPLE_RATE_HZ == pytest.approx(0.2 + 1 + 0.5 + 1 + 0.3 + 0.5 + 0.2, abs=0.05)
        assert np.square(made).sum() == pytest.approx(np.square(clip).sum(), rel=0.02)  # sound stays

    def test_sound_alone_is_left_as_it_is(self) -> None:
        clip = noise(2, 0.1)
        np.testing.assert_array_equal(shorten_pauses(clip, 0.5, 0.2), clip)

    def test_silence_alone_is_not_nothing(self) -> None:
        assert len(shorten_pauses(silence(3), 0.5, 0.2)) > 0


def test_drift_is_told_stretch_by_stretch() -> None:
    prompt = torch.from_numpy(noise(2, 0.1))
    samples = np.concatenate([noise(1, 0.1), noise(1, 0.05), silence(1.2)])
    logprobs = np.repeat(np.array([-1.0, -2.0, -3.0, -4.0], np.float32), [75, 75, 75, 15])
    run = Continued(0, 1, samples, logprobs, {})
    first, second, third = drift([run, run], [prompt], every=1.0)
    assert [own["from_seconds"] for own in (first, second, third)] == [0.0, 1.0, 2.0]
    assert [own["nll"] for own in (first, second, third)] == [1.0, 2.0, 3.0]
    assert first["level_db"] == pytest.approx(0.0, abs=0.3) and second["level_db"] == pytest.approx(-6.0, abs=0.3)
    assert first["silent"] == second["silent"] == 0.0 and third["silent"] == 1.0
