"""What is told of clips that are neither speech nor piano, and that nothing is told of those that are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from app.audio.character import CODE, FIRST_SAMPLES, Character, measures, sounds_like

EXAMPLES = Path(__file__).parents[3] / "examples"
SECONDS = np.arange(4 * 24_000) / 24_000


def read(name: str) -> Any:
    return soundfile.read(EXAMPLES / name, dtype="float32")[0]


def drums() -> Any:
    """Strokes of three kinds in turn, which die away: dull, of all pitches, sharp."""
    rng = np.random.default_rng(5)
    made = np.zeros(len(SECONDS))
    for number, start in enumerate(range(0, len(made) - 6_000, 3_000)):
        noise = rng.standard_normal(6_000)
        stroke = (np.cumsum(noise) * 0.1, noise, np.diff(noise, prepend=0.0))[number % 3]
        made[start : start + 6_000] += 0.1 * stroke * np.exp(-np.arange(6_000) / (1_500, 700, 300)[number % 3])
    return made


OTHERS = {
    "white": np.random.default_rng(1).standard_normal(len(SECONDS)) * 0.1,
    "brown": np.cumsum(np.random.default_rng(2).standard_normal(len(SECONDS))) * 0.001,
    "sine": 0.3 * np.sin(2 * np.pi * 700 * SECONDS),
    "sweep": 0.3 * np.sin(2 * np.pi * (100 * SECONDS + 600 * SECONDS**2)),
    "square": 0.2 * np.sign(np.sin(2 * np.pi * 150 * SECONDS)),
    "drums": drums(),
}


@pytest.mark.parametrize(("name", "told"), [
    ("white", "steady"), ("brown", "steady"), ("sine", "tones"), ("sweep", "tones"), ("square", "steady"),
    ("drums", "drums"),
])  # fmt: skip
@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_what_it_is_instead(name: str, told: str, gain: float) -> None:
    """However loud it is, and in whatever pieces it comes."""
    samples = (gain * OTHERS[name]).astype(np.float32)
    character = Character()
    for start in range(0, len(samples), 5_000):
        character.add(samples[start : start + 5_000])
    (notice,) = character.notices()
    assert notice.code == CODE and told in notice.message and notice.message.isascii()


@pytest.mark.parametrize("name", ["speech.flac", "music.flac"])
@pytest.mark.parametrize("noise_db", [-60, -15])
def test_speech_and_piano(name: str, noise_db: float) -> None:
    samples = read(name)
    noise = np.random.default_rng(3).standard_normal(len(samples)).astype(np.float32)
    level = float(np.sqrt(np.mean(samples**2))) * 10 ** (noise_db / 20)
    for gain in (0.01, 1.0):
        assert sounds_like(gain * (samples + level * noise)) is None


def test_too_little_is_not_judged() -> None:
    white = OTHERS["white"].astype(np.float32)
    assert measures(white[:48_000]) is None and measures(np.zeros(48_000 * 3, np.float32)) is None
    assert measures(np.zeros(0, np.float32)) is None and Character().notices() == ()


def test_only_the_beginning_is_kept() -> None:
    character = Character()
    for _ in range(100):
        character.add(np.zeros(24_000, np.float32))
    assert sum(map(len, character._kept)) == FIRST_SAMPLES
