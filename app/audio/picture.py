"""Pictures of audio and its likelihood: waveform, log-mel spectrogram and log-likelihood on one time axis.

Drawn with matplotlib's object interface alone, so that no state is shared between threads but its fonts'.
"""

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from app.audio.samples import Samples
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, SAMPLE_RATE_HZ, frames_in
from model.lm.mel import LogMel

Values = npt.NDArray[np.float64]
WIDTH, HEIGHT, DPI = 1200, 660, 100  # pixels; what a page shows without scaling
COLUMNS = 2200  # of a sketch: two for each pixel of the axes
BLOCK_FRAMES = 750
SMOOTH_SECONDS = 0.25  # about a syllable: single tokens are noisy
DECIBELS = 20 / math.log(10)  # of a natural logarithm of an amplitude
RANGE_DECIBELS = 60
TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)
PAST, SCORED, WINDOWS = (
    "#9aa0a6",
    "#1f5fa8",
    "#c2410c",
)  # far apart for the colour-blind, too

_drawing = threading.Lock()  # matplotlib's fonts are shared, and no promise is made of them to threads


@dataclass(frozen=True)
class Sketch:
    """What a picture needs of a clip's whole frames: some hundred kB, however long the clip is.

    ``low``, ``high`` (n,): least and greatest samples. ``mel`` (m, 64): natural logarithms.
    """

    seconds: float
    low: Values
    high: Values
    mel: Values

    @classmethod
    def of(cls, samples: Samples) -> "Sketch":
        """Of (N,) samples at 24 kHz; a frame at least."""
        frames = frames_in(len(samples))
        edges = np.unique(np.linspace(0, frames * HOP_SAMPLES, COLUMNS, endpoint=False).astype(np.int64))
        whole = samples[: frames * HOP_SAMPLES]
        low, high = np.minimum.reduceat(whole, edges), np.maximum.reduceat(whole, edges)
        return cls(frames / FRAME_RATE_HZ, low.astype(np.float64), high.astype(np.float64), _mel(whole))


@torch.inference_mode()
def _mel(samples: Samples) -> Values:
    """The model's own mel frames, means of as many neighbours as leave ``COLUMNS`` at most."""
    front, pool = LogMel(), -(-frames_in(len(samples)) // COLUMNS)
    size = max(BLOCK_FRAMES // pool, 1) * pool * HOP_SAMPLES
    left, parts = torch.zeros(1, MEL_LEFT_SAMPLES), []
    for start in range(0, len(samples), size):
        block = torch.from_numpy(samples[start : start + size].copy())[None]
        parts += [part.mean(0) for part in front(block, left)[0].split(pool)]
        left = torch.cat([left, block], dim=-1)[:, -MEL_LEFT_SAMPLES:]
    return torch.stack(parts).double().numpy()


@dataclass(frozen=True)
class Strip:
    """Log-probabilities of tokens, (T,), the first of which begins at ``start`` seconds."""

    name: str
    logprobs: Values
    start: float = 0.0
    colour: str = SCORED


@dataclass(frozen=True)
class Windows:
    """Mean log-probabilities of windows, (n,), nats a token, each at its middle, ``times`` (n,) seconds."""

    times: Values
    means: Values


def _printable(text: str) -> str:
    """With a box for what matplotlib's own font lacks, which would be warned of once a glyph."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known else "\u25a1" for letter in text)


def _band(hertz: float) -> float:
    """Where a frequency lies among the mel bands, HTK scale: 0 is the middle of the first."""
    return math.log1p(hertz / 700) / math.log1p(SAMPLE_RATE_HZ / 2 / 700) * (MEL_BANDS + 1) - 1


def _smooth(values: Values, width: int) -> Values:
    """Means over ``width`` neighbours; at the ends over those that are there."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def picture(
    title: str, sketch: Sketch, strips: Sequence[Strip], windows: Windows | None = None, joint: float | None = None
) -> bytes:
    """A PNG, 1200 x 660.

    Args:
        title: above all.
        sketch: of the audio.
        strips: of its tokens.
        windows: means along the clip, drawn over the tokens.
        joint: seconds, where a prompt ends and its continuation begins.
    """
    with _drawing:
        return _picture(title, sketch, strips, windows, joint)


def _picture(
    title: str, sketch: Sketch, strips: Sequence[Strip], windows: Windows | None, joint: float | None
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib says little of its types
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 2, 2), width_ratios=(80, 1))
    wave = figure.add_subplot(grid[0, 0])
    spectrogram = figure.add_subplot(grid[1, 0], sharex=wave)
    likelihood = figure.add_subplot(grid[2, 0], sharex=wave)
    figure.suptitle(_printable(title), fontsize=12, parse_math=False)

    times = np.linspace(0, sketch.seconds, len(sketch.low), endpoint=False)
    wave.fill_between(times, sketch.low, sketch.high, step="post", color="#444444", linewidth=0.4)
    peak = max(float(np.abs([sketch.low, sketch.high]).max()), 1e-3)
    wave.set(ylim=(-1.05 * peak, 1.05 * peak), ylabel="amplitude", xlim=(0, sketch.seconds))

    decibels = DECIBELS * (sketch.mel - sketch.mel.max())
    image = spectrogram.imshow(
        decibels.T, origin="lower", aspect="auto", extent=(0, sketch.seconds, -0.5, MEL_BANDS - 0.5), cmap="magma",
        vmin=-RANGE_DECIBELS, vmax=0, interpolation="nearest",
    )  # fmt: skip
    names = [f"{hertz // 1000}k" if hertz >= 1000 else str(hertz) for hertz in TICKS_HZ]
    spectrogram.set_yticks([_band(hertz) for hertz in TICKS_HZ], names)
    spectrogram.set_ylabel("mel band, Hz")
    figure.colorbar(image, cax=figure.add_subplot(grid[1, 1]), label="dB below the peak")

    for strip in strips:
        middles = strip.start + (np.arange(len(strip.logprobs)) + 0.5) / FRAME_RATE_HZ
        pool = -(-len(middles) // COLUMNS)
        edges = np.arange(0, len(middles), pool)
        low, high = np.minimum.reduceat(strip.logprobs, edges), np.maximum.reduceat(strip.logprobs, edges)
        if pool == 1:
            likelihood.plot(middles, strip.logprobs, ".", markersize=2.5, color=strip.colour, alpha=0.45)
        else:
            likelihood.fill_between(middles[edges], low, high, color=strip.colour, alpha=0.25, linewidth=0)
        smooth = max(SMOOTH_SECONDS, sketch.seconds / 200)
        means = _smooth(strip.logprobs, min(round(smooth * FRAME_RATE_HZ), len(middles)))
        mean = float(strip.logprobs.mean())
        likelihood.plot(
            middles[edges], means[edges], color=strip.colour, linewidth=1.8,
            label=f"{strip.name}: {mean:.2f} nats a token; the line is a mean over {smooth:.2g} s",
        )  # fmt: skip
    if windows is not None:
        likelihood.plot(
            windows.times,
            windows.means,
            "o-",
            color=WINDOWS,
            markersize=3.5,
            linewidth=1.2,
            label="means of the windows",
        )
    likelihood.set(ylabel="log-likelihood of each\ntoken, nats", xlabel="time, s")
    lowest = min(float(strip.logprobs.min()) for strip in strips)
    likelihood.set_ylim(min(1.35 * lowest, -1.0), 0.0)  # room for the legend below the tokens
    likelihood.grid(alpha=0.3)
    likelihood.legend(loc="lower left", fontsize=9, framealpha=0.85)
    for axes in (wave, spectrogram):
        axes.tick_params(labelbottom=False)
    if joint is not None:
        for axes, colour in ((wave, "black"), (spectrogram, "white"), (likelihood, "black")):
            axes.axvline(joint, color=colour, linewidth=1.5, linestyle="--")
        style: dict[str, Any] = {"transform": wave.get_xaxis_transform(), "va": "bottom", "fontsize": 10}
        wave.text(joint / 2, 1.02, "prompt", ha="center", **style)
        wave.text((joint + sketch.seconds) / 2, 1.02, "continuation", ha="center", **style)

    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    out = io.BytesIO()
    # 256 colours are a third of the bytes, and no eye tells them from all
    drawn.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
