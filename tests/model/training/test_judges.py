"""Judges: words counted by hand, and, with the extra, marks that fall when speech is damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.constants import SAMPLE_RATE_HZ
from model.training import voices
from model.training.corpus import read_audio
from model.training.judges import available, heard_figures, mean_opinion, word_errors, words

EXAMPLE = Path(__file__).parents[3] / "examples" / "speech.flac"  # a sentence, spoken by espeak-ng


@pytest.mark.parametrize(
    ("heard", "said", "errors"),
    [
        ("the cat sat", "the cat sat", 0),
        ("the sat", "the cat sat", 1),
        ("the cat sat down", "the cat sat", 1),
        ("a cat sad", "the cat sat", 2),
        ("", "the cat sat", 3),
        ("the cat", "", 2),
        ("cat the sat", "the cat sat", 2),
    ],
)
def test_word_errors(heard: str, said: str, errors: int) -> None:
    assert word_errors(heard.split(), said.split()) == errors


@pytest.mark.slow  # half a minute of a recogniser
@pytest.mark.skipif(not available(), reason="needs the extra `judges`: pip install -e .[judges]")
def test_judges_hear_damage() -> None:
    clean = torch.from_numpy(read_audio(EXAMPLE))
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(0))
    damaged = clean + 0.2 * clean.std() * noise + clean.std() * noise * (torch.arange(len(clean)) % 4800 < 2400)
    said = words(clean)
    assert len(said) >= 5 and words(clean) == said, "the same words every time"
    assert word_errors(words(damaged), said) > 0
    assert mean_opinion(clean)["mos"] > mean_opinion(damaged)["mos"] + 0.2


def test_a_continuation_too_short_to_judge_has_no_marks() -> None:
    short = np.zeros(SAMPLE_RATE_HZ - 1, np.float32)
    assert heard_figures(short, short) == {}


@pytest.mark.slow  # loads both networks
@pytest.mark.skipif(
    not (available() and voices.available()), reason="needs the extra `judges`: pip install -e .[judges]"
)
def test_the_same_voice_is_likelier_than_a_tone() -> None:
    speech = read_audio(EXAMPLE)
    half = len(speech) // 2
    tone = np.sin(2 * np.pi * 440 * np.arange(half) / SAMPLE_RATE_HZ).astype(np.float32)
    own, other = heard_figures(speech[half:], speech[:half]), heard_figures(tone, speech[:half])
    assert {"mos", "mos_signal", "mos_p808", "similarity"} == set(own) == set(other)
    assert own["similarity"] > other["similarity"] + 0.2
    assert own["mos"] > other["mos"] + 0.5
