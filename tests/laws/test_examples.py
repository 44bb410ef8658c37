"""The example clips are what their script makes."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.constants import SAMPLE_RATE_HZ

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIPS = ["speech.flac", "music.flac"]


@pytest.mark.parametrize("name", CLIPS)
def test_clip_is_a_short_audible_prompt(name: str) -> None:
    samples, rate = soundfile.read(EXAMPLES / name, dtype="float32", always_2d=True)
    assert rate == SAMPLE_RATE_HZ
    assert samples.shape[1] == 1
    assert 5.0 <= len(samples) / rate <= 8.0
    assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.2
    assert np.abs(samples).max() < 0.99
    assert np.sqrt(np.mean(samples[-rate // 4 :] ** 2)) > 0.01, "ends in silence: nothing to carry on from"
    assert (EXAMPLES / name).stat().st_size < 300_000


@pytest.mark.system
@pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("fluidsynth")),
    reason="needs espeak-ng and FluidSynth: apt-get install espeak-ng fluidsynth fluid-soundfont-gm",
)
def test_script_makes_the_clips(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_examples", EXAMPLES / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    for name in CLIPS:
        made, _ = soundfile.read(tmp_path / name, dtype="float32")
        kept, _ = soundfile.read(EXAMPLES / name, dtype="float32")
        assert abs(len(made) - len(kept)) < SAMPLE_RATE_HZ // 10  # other versions of the tools differ a little
        assert 0.02 < np.sqrt(np.mean(made**2)) < 0.2
