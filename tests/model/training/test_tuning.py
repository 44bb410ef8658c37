"""In tune, and the same notes: known chords, detuned ones, noise and silence."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model.constants import SAMPLE_RATE_HZ
from model.training.tuning import chroma_similarity, in_tune, note_levels, same_notes


def chord(notes: Sequence[float], seconds: float = 1.5) -> Tensor:
    """Sines on MIDI notes, which may lie between semitones."""
    time = torch.arange(round(seconds * SAMPLE_RATE_HZ), dtype=torch.float64) / SAMPLE_RATE_HZ
    parts = [torch.sin(2 * math.pi * 440 * 2 ** ((note - 69) / 12) * time) for note in notes]
    return (0.1 * torch.stack(parts).sum(0)).float()


def test_semitones_are_in_tune() -> None:
    assert in_tune(chord([60, 64, 67])) == pytest.approx(1.0, abs=1e-3)


def test_quarter_tones_are_not() -> None:
    assert in_tune(chord([60.5, 64.5, 67.5])) == pytest.approx(0.0, abs=1e-3)


def test_half_of_the_energy() -> None:
    assert in_tune(chord([60, 71.5])) == pytest.approx(0.5, abs=0.05)


def test_noise_is_near_chance() -> None:
    noise = torch.randn(10 * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) * 0.1
    found = in_tune(noise)
    assert found is not None
    assert 0.3 < found < 0.5


def test_same_notes() -> None:
    assert same_notes(chord([60, 64, 67]), chord([60, 64, 67])) == pytest.approx(1.0)
    assert same_notes(0.1 * chord([60, 64, 67]), chord([60, 64, 67])) == pytest.approx(1.0)
    other = same_notes(chord([62, 65, 69]), chord([60, 64, 67]))
    assert other is not None
    assert other < 0.1


def test_one_wrong_note_of_two() -> None:
    assert same_notes(chord([60, 66]), chord([60, 72])) == pytest.approx(0.5, abs=0.05)


def test_levels_lie_in_their_semitone() -> None:
    assert set(note_levels(chord([69])).argmax(1).tolist()) == {30}


@pytest.mark.parametrize(
    ("samples", "same"),
    [(torch.zeros(0), None), (torch.zeros(8191), None), (torch.zeros(20_000), 0.0)],
    ids=["none", "short", "silent"],
)
def test_nothing_to_tell(samples: Tensor, same: float | None) -> None:
    assert in_tune(samples) is None
    assert same_notes(samples, samples) == same


def test_chroma_knows_the_key_and_not_the_octave() -> None:
    assert chroma_similarity(chord([60, 64, 67]), chord([72, 64, 79], seconds=2.0)) == pytest.approx(1.0, abs=0.02)
    other = chroma_similarity(chord([60, 64, 67]), chord([61, 66, 70]))
    assert other is not None and other < 0.1
    assert chroma_similarity(chord([60]), chord([60], seconds=0.2)) is None
