"""Continuation quality: does what the model makes go on in the prompt's voice, and is it distributed like real speech?

    pip install -e ".[train,quality]"
    python -m benchmarks.quality.continuations    # some minutes on one core; what was made is kept under runs/quality

Prompts of 3 s, continuations of 5 s, one each, at several temperatures. Beside them: the true continuation, the same
through the codec (the ceiling of anything that the codec decodes), and the true continuation of another prompt by a
random other speaker, through the codec. Measured twice: on validation speakers, by which the default temperature is
chosen, and on the test speakers, which only report. Intervals are 95 % bootstraps over prompts.

* similarity: cosine of Resemblyzer's speaker embeddings (Apache-2.0; weights in its wheel) of prompt and continuation.
* distance: squared Frechet distance to the true continuations, of the codec encoder's output
  (`benchmarks/quality/latents.py`).
* voiced: share of 5 ms frames with a pitch (WORLD's DIO); range: 10th to 90th percentile of it, semitones.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.common import (
    DEFAULT,
    RESULTS,
    ROOT,
    SPEECH,
    Subject,
    by_speaker,
    clips_in,
    default_models,
    load_subjects,
    rounded,
    valid_clips,
    write_json,
)
from benchmarks.quality import acoustics
from benchmarks.quality.continuing import Made, coded, continue_all
from benchmarks.quality.latents import POOL_FRAMES, Space, distance, pooled
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from model.files import whole_file
from model.inference.sampling import SamplingOptions
from model.training.evaluate import bootstrap
from model.training.voices import embedding

PROMPT_SECONDS, MADE_SECONDS = 3, 5
TEMPERATURES = (0.7, 0.9, 1.0)
FEWER_CODEBOOKS = (4, 2, 1)  # than the 8 that the bundle makes
ROWS = 32  # continued at a time
PER_SPEAKER = 8
FIGURES = ("similarity", "voiced", "range", "silence", "level")
Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Prompts:
    """Prompts (B, 3 s) and what was really said next (B, 5 s), with their speakers."""

    speakers: list[str]
    prompts: Tensor
    truth: Tensor


def cut(speech: Sequence[tuple[str, Tensor]], per_speaker: int = PER_SPEAKER) -> Prompts:
    """Pieces of 8 s of (speaker, samples), one every 5 s so that no truth is in two, at most so many of a speaker."""
    size, hop = (PROMPT_SECONDS + MADE_SECONDS) * SAMPLE_RATE_HZ, MADE_SECONDS * SAMPLE_RATE_HZ
    counts: dict[str, int] = {}
    speakers, pieces = [], []
    for speaker, samples in speech:
        for start in range(0, len(samples) - size + 1, hop):
            if counts.get(speaker, 0) < per_speaker:
                counts[speaker] = counts.get(speaker, 0) + 1
                speakers.append(speaker)
                pieces.append(samples[start : start + size])
    whole = torch.stack(pieces)
    at = PROMPT_SECONDS * SAMPLE_RATE_HZ
    return Prompts(speakers, whole[:, :at], whole[:, at:])


def strangers(speakers: Sequence[str], seed: int) -> list[int]:
    """For each prompt another one, by a random other speaker."""
    rng = np.random.default_rng(seed)
    return [int(rng.choice([i for i, other in enumerate(speakers) if other != own])) for own in speakers]


def make(subject: Subject, prompts: Tensor, options: SamplingOptions, keep: Path) -> Made:
    """Continuations of prompts, ROWS at a time, each batch kept in a file and not made again."""
    weights = hashlib.sha256()
    for tensor in (*subject.bundle.lm.state_dict().values(), *subject.bundle.codec.state_dict().values()):
        weights.update(tensor.numpy().tobytes())
    parts = []
    for start in range(0, len(prompts), ROWS):
        some = prompts[start : start + ROWS]
        key = hashlib.sha256(some.numpy().tobytes() + weights.digest())
        key.update(repr((subject.masked, subject.codebooks, options, MADE_SECONDS, start)).encode())
        path = keep / f"{key.hexdigest()[:24]}.npz"
        if not path.exists():
            words = f"{subject.name}, temperature {options.temperature:g}"
            batch = SamplingOptions(options.temperature, options.top_k, options.top_p, options.seed + start)
            made = continue_all(subject, some, MADE_SECONDS * FRAME_RATE_HZ, batch, words)
            keep.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part, part.open("wb") as file:
                np.savez(file, tokens=made.tokens, logprobs=made.logprobs, samples=made.samples.astype(np.float16))
        with np.load(path) as found:
            parts.append((found["tokens"], found["logprobs"], found["samples"].astype(np.float32)))
    tokens, logprobs, samples = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Made(tokens, logprobs, samples)


def described(prompts: Prompts, voices: list[Array], samples: Array) -> dict[str, list[float | None]]:
    """Each figure of each continuation (B, N)."""
    rows: dict[str, list[float | None]] = {name: [] for name in FIGURES}
    for prompt, voice, wave in zip(prompts.prompts.numpy(), voices, samples, strict=True):
        f0, prompt_db = acoustics.pitch(wave), acoustics.level_db(prompt)
        rows["similarity"].append(float(voice @ embedding(wave)))
        rows["voiced"].append(acoustics.voiced_ratio(f0))
        rows["range"].append(acoustics.pitch_range(f0))
        rows["silence"].append(acoustics.silence_ratio(wave, prompt_db))
        rows["level"].append(acoustics.level_db(wave) - prompt_db)
    return rows


def summary(rows: dict[str, list[float | None]]) -> dict[str, Any]:
    """Means with intervals; what cannot be told of a continuation (its pitch range, when hardly voiced) is left out."""
    known = {name: [value for value in values if value is not None] for name, values in rows.items()}
    return {name: bootstrap(values) | {"prompts": len(values)} for name, values in known.items() if values}


def measure(
    subjects: Sequence[Subject], prompts: Prompts, temperatures: Sequence[float], seed: int, keep: Path
) -> dict[str, Any]:
    """The table of one split: {what: {figure: interval}}."""
    bundle = subjects[0].bundle
    voices = [embedding(prompt) for prompt in prompts.prompts.numpy()]
    truth = pooled(bundle, prompts.truth)
    space = Space.of(truth.reshape(-1, truth.shape[-1]))
    real = space.project(truth)
    waves: dict[str, Array] = {"true continuation": prompts.truth.numpy()}
    for books in sorted({subject.codebooks for subject in subjects}, reverse=True):
        through = coded(Subject("codec", bundle, codebooks=books), torch.cat([prompts.prompts, prompts.truth], 1))
        words = "through the codec" if books == bundle.codec.config.codebooks else f"through {books} codebook(s)"
        waves[f"true continuation {words}"] = through[:, prompts.prompts.shape[1] :].numpy()
    others = strangers(prompts.speakers, seed)
    waves["another speaker, through the codec"] = waves["true continuation through the codec"][others]
    surprise = {}
    for subject in subjects:
        for temperature in temperatures:
            made = make(subject, prompts.prompts, SamplingOptions(temperature, seed=seed), keep)
            name = f"{subject.name}, temperature {temperature:g}"
            waves[name] = made.samples
            surprise[name] = bootstrap(-made.logprobs.mean(1))
    report: dict[str, Any] = {}
    for name, samples in track(waves.items(), description="measuring"):
        report[name] = summary(described(prompts, voices, samples))
        report[name]["distance"] = distance(real, space.project(pooled(bundle, torch.from_numpy(samples))))
        if name in surprise:
            report[name]["surprise"] = surprise[name]
    half = np.random.default_rng(seed).permutation(len(real))
    one, other = (real[rows].reshape(-1, real.shape[-1]) for rows in np.array_split(half, 2))
    return {
        "rows": report,
        "distance_of_halves": acoustics.frechet(one, other),  # what sampling alone makes of half as many prompts
        "prompts": len(prompts.speakers),
        "speakers": len(set(prompts.speakers)),
        "vectors": int(np.prod(real.shape[:2])),
        "dimensions": real.shape[-1],
    }


def best(report: dict[str, Any], subject: str, temperatures: Sequence[float]) -> float:
    """The temperature whose continuations lie nearest to true ones."""
    rows = report["rows"]
    return min(temperatures, key=lambda t: rows[f"{subject}, temperature {t:g}"]["distance"]["mean"])


def main() -> None:
    """Make what is missing, measure, choose on validation, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="NAME=FOLDER[:masked], a bundle or a table's run; repeat")
    parser.add_argument("--bundle", type=Path, default=DEFAULT, help="whose codec the runs use")
    parser.add_argument("--clips", type=Path, default=SPEECH, help="test clips, named SPEAKER-...")
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "corpus", help="for its validation speakers")
    parser.add_argument("--temperature", type=float, action="append", help="repeat; default: 0.7, 0.9, 1.0")
    parser.add_argument("--per-speaker", type=int, default=PER_SPEAKER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fewer = [f"hybrid-4m, {count} codebooks={arguments.bundle}:{count}" for count in FEWER_CODEBOOKS]
    models = arguments.model or [*default_models(arguments.bundle), *fewer]
    subjects = load_subjects(models, arguments.bundle)
    temperatures = arguments.temperature or TEMPERATURES
    splits = {
        "validation": list(by_speaker(valid_clips(arguments.corpus)).items()),  # short clips, put together
        "test": [(speaker, samples) for _, speaker, samples in clips_in(arguments.clips)],
    }
    body: dict[str, Any] = {}
    for split, speech in splits.items():
        prompts = cut(speech, arguments.per_speaker)
        body[split] = measure(subjects, prompts, temperatures, arguments.seed, arguments.keep)
        for name, row in body[split]["rows"].items():
            print(f"{split:10} {name:44}", "  ".join(f"{key} {one['mean']:.3f}" for key, one in row.items()))
    body["chosen_temperature"] = best(body["validation"], subjects[0].name, temperatures)
    body["models"] = {subject.name: subject.described() for subject in subjects}
    body["conditions"] = {
        "prompt_seconds": PROMPT_SECONDS, "made_seconds": MADE_SECONDS, "pool_frames": POOL_FRAMES,
        "seed": arguments.seed, "chosen_by": f"distance of {subjects[0].name} on validation speakers",
    }  # fmt: skip
    write_json(arguments.out, rounded(body))


if __name__ == "__main__":
    main()
