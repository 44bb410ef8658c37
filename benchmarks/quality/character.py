"""How often a clip of speech or piano is told to be something else, and how often something else is.

python -m benchmarks.quality.character --speech FOLDER .. --music MIDI ..

Whole clips of the folders (at most ``--clips`` of each, drawn by ``--seed``), and excerpts of pieces; the same in
noise; and sounds that are made here, with other numbers at each seed.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.audio.character import sounds_like
from app.audio.samples import Samples
from benchmarks.common import RESULTS
from model.constants import SAMPLE_RATE_HZ
from model.files import put_json
from model.training.corpus import find_files, read_audio, render_midi

EXCERPT = 5 * SAMPLE_RATE_HZ
EXCERPTS = 5  # of a piece
TIME = np.arange(4 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
Noise = np.random.Generator


def shaped(rng: Noise, slope: float, lowest: float = 20.0, highest: float = SAMPLE_RATE_HZ / 2) -> Any:
    """Noise whose amplitude falls as frequency to the power ``-slope``, between two edges, Hz."""
    hertz = np.fft.rfftfreq(len(TIME), 1 / SAMPLE_RATE_HZ)
    gain = np.where((hertz >= lowest) & (hertz <= highest), np.maximum(hertz, 20.0) ** -slope, 0.0)
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(len(TIME))) * gain, len(TIME))


def gusts(rng: Noise) -> Any:
    """Pink noise whose level comes and goes."""
    return np.abs(shaped(rng, 0.0, 0.0, rng.uniform(2, 8))) * shaped(rng, 0.5)


def drums(rng: Noise) -> Any:
    """A bass drum, a snare and a cymbal in a pattern of eighths that is drawn."""
    made = np.zeros(len(TIME))
    step = round(SAMPLE_RATE_HZ * 30 / rng.uniform(80, 160))
    length = SAMPLE_RATE_HZ // 3
    at = np.arange(length) / SAMPLE_RATE_HZ
    for number, start in enumerate(range(0, len(made) - length, step)):
        stroke = 0.15 * np.diff(rng.standard_normal(length + 1)) * np.exp(-at / 0.04)
        if number % 4 == 0 or rng.random() < 0.15:
            stroke += np.sin(2 * np.pi * (50 * at - 4 * np.exp(-at / 0.03))) * np.exp(-at / 0.12)
        if number % 4 == 2:
            stroke += (0.5 * rng.standard_normal(length) + 0.4 * np.sin(2 * np.pi * 190 * at)) * np.exp(-at / 0.09)
        made[start : start + length] += stroke
    return made


def clicks(rng: Noise) -> Any:
    made = np.zeros(len(TIME))
    period = int(SAMPLE_RATE_HZ / rng.uniform(2, 40))
    made[int(rng.integers(period)) :: period] = 1.0
    return made


def hum(rng: Noise) -> Any:
    """A mains hum with six of its harmonics, and hiss 50 dB below it."""
    hertz = rng.uniform(49, 61)
    parts = [np.sin(2 * np.pi * hertz * n * TIME + rng.uniform(0, 6)) / n for n in range(1, 8)]
    return np.sum(parts, axis=0) + 0.003 * rng.standard_normal(len(TIME))


def sweep(rng: Noise) -> Any:
    low, high = rng.uniform(60, 400), rng.uniform(2_000, 11_000)
    return np.sin(2 * np.pi * (low * TIME + (high - low) * TIME**2 / (2 * TIME[-1])))


def band(rng: Noise) -> Any:
    low = rng.uniform(100, 3_000)
    return shaped(rng, 0.0, low, low * rng.uniform(1.3, 3))


MADE = {
    "white noise": lambda rng: shaped(rng, 0.0),
    "pink noise": lambda rng: shaped(rng, 0.5),
    "brown noise": lambda rng: shaped(rng, 1.0),
    "a band of noise": band,
    "gusts of pink noise": gusts,
    "sine": lambda rng: np.sin(2 * np.pi * rng.uniform(80, 6_000) * TIME),
    "square wave": lambda rng: np.sign(np.sin(2 * np.pi * rng.uniform(80, 2_000) * TIME)),
    "sine sweep": sweep,
    "mains hum": hum,
    "clicks": clicks,
    "drums": drums,
}


def loud(samples: Any, rms: float = 0.06) -> Samples:
    """At a level of speech, cut at full scale."""
    scaled = samples * (rms / (np.sqrt(np.mean(np.square(samples))) + 1e-9))
    return np.asarray(np.clip(scaled, -1, 1), np.float32)


def noisy(samples: Samples, rng: Noise, decibels: float) -> Samples:
    """With white noise so far below it."""
    level = np.sqrt(np.mean(np.square(samples))) * 10 ** (-decibels / 20)
    return np.asarray(samples + level * rng.standard_normal(len(samples)), np.float32)


def real(speech: list[Path], music: list[Path], clips: int, rng: Noise) -> Iterator[tuple[str, Samples]]:
    """Kind and samples."""
    for folder in speech:
        files = find_files([folder])
        for index in rng.permutation(len(files))[:clips]:
            yield f"speech: {folder.name}", read_audio(files[index])
    pieces = find_files(music) if music else []
    for index in rng.permutation(len(pieces))[: clips // EXCERPTS]:
        samples = render_midi(pieces[index])
        for start in rng.integers(max(len(samples) - EXCERPT, 1), size=EXCERPTS):
            yield "piano", samples[start : start + EXCERPT]


def measured(speech: list[Path], music: list[Path], clips: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    told: dict[str, Counter[str]] = {}

    def look(kind: str, samples: Samples) -> None:
        told.setdefault(kind, Counter())[sounds_like(samples) or ""] += 1

    for number, (kind, samples) in enumerate(real(speech, music, clips, rng)):
        look(kind, samples)
        if number % 4 == 0:
            for decibels in (20, 10, 5):
                look(f"{kind.partition(':')[0]} in white noise, {decibels} dB", noisy(samples, rng, decibels))
    alike = list(told)
    for kind, make in MADE.items():
        for _ in range(clips // 2):
            look(kind, loud(make(rng)))
    rows = {
        kind: {"clips": count.total(), "told": {what: n for what, n in count.items() if what}}
        for kind, count in told.items()
    }
    return {"conditions": {"seed": seed}, "speech_and_piano": {kind: rows.pop(kind) for kind in alike}, "others": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, nargs="*", default=[])
    parser.add_argument("--music", type=Path, nargs="*", default=[])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    put_json(RESULTS / "character.json",
             measured(arguments.speech, arguments.music, arguments.clips, arguments.seed))  # fmt: skip


if __name__ == "__main__":
    main()
