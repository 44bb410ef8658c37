"""Choosing a bundle: prompts are of validation alone, and every setting gets its row."""

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from benchmarks.quality.choose import SETTINGS, music_prompts, report, speech_prompts
from model.checkpoint import Bundle
from model.constants import SAMPLE_RATE_HZ
from model.training.corpus import build_corpus, is_valid_group
from tests.support.signals import make_speech_like

NAMES = sorted((f"speaker{number}" for number in range(200)), key=lambda name: not is_valid_group(name, 0.0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    def build(music: bool) -> Path:
        """Two groups of validation, of which each says a tone of its own, and two of training, which are
        silent."""
        folder = tmp_path_factory.mktemp("audio")
        for number, name in enumerate([*NAMES[:2], *NAMES[-2:]]):
            path = folder / name / f"{name}.wav"
            path.parent.mkdir()
            # who is a large part of a corpus is never set aside
            samples = make_speech_like(14.0, seed=number) * 0.5 if number < 2 else torch.zeros(300 * SAMPLE_RATE_HZ)
            soundfile.write(path, samples.numpy(), SAMPLE_RATE_HZ)
        out = tmp_path_factory.mktemp("corpus")
        build_corpus([folder], out, music=music)
        return out

    return build


def test_prompts_are_of_validation_alone(corpus: Callable[[bool], Path]) -> None:
    for prompts in (speech_prompts(corpus(False), 4), music_prompts(corpus(True), 4)):
        assert len(prompts) >= 2 and {len(prompt) for prompt in prompts} == {3 * SAMPLE_RATE_HZ}
        assert all(float(prompt.abs().max()) > 0.01 for prompt in prompts), "a silent one is of training"


def test_every_setting_has_its_row(bundle: Bundle) -> None:
    prompts = [make_speech_like(0.5, seed) for seed in range(2)]
    rows = report(bundle, "music", prompts, seconds=0.2)
    assert [(row["temperature"], row["top_p"]) for row in rows] == list(SETTINGS)
    assert {row["continuations"] for row in rows} == {4}
    assert not torch.equal(prompts[0], prompts[1]) and rows[0]["nll"] != rows[1]["nll"]
