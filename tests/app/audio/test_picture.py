"""Pictures: of the size that is promised, whole for clips of any length, and without matplotlib's global state."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from app.audio.picture import COLUMNS, Sketch, Strip, Windows, picture
from model.constants import HOP_SAMPLES

BLANK = (255, 255, 255)


def opened(content: bytes) -> Image.Image:
    assert content.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(content)).convert("RGB")


def tone(frames: int) -> np.ndarray:
    wave: np.ndarray = (0.3 * np.sin(np.arange(frames * HOP_SAMPLES) * 0.1)).astype(np.float32)
    return wave


@pytest.mark.parametrize("frames", [1, 7, 475, 30_000], ids=lambda frames: f"{frames}-frames")
def test_a_sketch_is_small_and_holds_the_extremes(frames: int) -> None:
    samples = tone(frames)
    samples[100] = -0.9
    sketch = Sketch.of(np.concatenate([samples, np.ones(111, dtype=np.float32)]))
    assert sketch.seconds == pytest.approx(frames / 75)
    assert len(sketch.low) == len(sketch.high) <= COLUMNS and len(sketch.mel) <= COLUMNS
    assert sketch.low.min() == pytest.approx(-0.9) and sketch.high.max() < 0.5, "a partial frame is no part of it"
    assert sketch.mel.shape[1] == 64 and np.isfinite(sketch.mel).all()


def test_mel_frames_are_the_models(speech: np.ndarray) -> None:
    import torch

    from model.lm.mel import LogMel

    whole = LogMel()(torch.from_numpy(speech)[None])[0]
    np.testing.assert_allclose(Sketch.of(speech).mel, whole.numpy(), atol=1e-4)


@pytest.mark.parametrize("frames", [7, 475, 6_000])
def test_picture(frames: int) -> None:
    logprobs = -np.linspace(0, 8, frames)
    windows = Windows(np.array([0.05]), np.array([-3.0]))
    image = opened(picture("clip", Sketch.of(tone(frames)), [Strip("model", logprobs)], windows, joint=0.04))
    assert image.size == (1200, 660)
    colours = image.getcolors(1 << 20)
    assert colours is not None and len(colours) > 20
    assert image.getpixel((0, 0)) == BLANK


def test_silence_has_a_picture() -> None:
    sketch = Sketch.of(np.zeros(75 * HOP_SAMPLES, dtype=np.float32))
    assert opened(picture("silence", sketch, [Strip("model", np.zeros(75))])).size == (1200, 660)


@pytest.mark.parametrize("title", ["a $b_{c.flac", "\u0433\u043e\u043b\u043e\u0441", "\u9375.wav", "\U0001f3b5 \\frac"])
def test_any_name_is_a_title(title: str) -> None:
    """No formula, and no warning of a letter that the font lacks: warnings are errors here."""
    opened(picture(title, Sketch.of(tone(10)), [Strip("model", -np.ones(10))]))


def test_a_picture_is_the_same_bytes_again() -> None:
    first, second = (picture("clip", Sketch.of(tone(50)), [Strip("model", -np.ones(50))]) for _ in range(2))
    assert first == second


def test_no_global_state() -> None:
    code = (
        "import sys, numpy as np\nfrom app.audio.picture import *\n"
        "picture('clip', Sketch.of(np.zeros(3200, dtype=np.float32)), [Strip('model', -np.ones(10))])\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
