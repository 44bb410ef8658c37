"""What continuations sound like, measured on the samples: level, silence, and for music whether it stays in tune."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.backend import backend_for
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.training.pauses import stretches
from model.training.tuning import chroma_similarity, in_tune

SILENT_DB = -40.0  # below the prompt's loud frames: what counts as silence
LOUD_QUANTILE = 0.9  # of the frames' levels
TRAP_SECONDS = 1.5  # a silence of so long at a stretch is a trap

Judge = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], dict[str, float]]  # (made, prompt) -> figures


def frame_levels(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Root mean square of each frame, smoothed over three: (N,) -> (N // 320,)"""
    frames = len(samples) // HOP_SAMPLES
    power = np.square(samples[: frames * HOP_SAMPLES].astype(np.float64)).reshape(frames, HOP_SAMPLES).mean(1)
    padded = np.pad(power, 1, mode="edge")
    smooth: npt.NDArray[np.float64] = np.sqrt((padded[:-2] + padded[1:-1] + padded[2:]) / 3)
    return smooth


def longest_run(values: npt.NDArray[np.bool_]) -> int:
    """Length of the longest stretch of True."""
    return max((last - first for first, last in stretches(values)), default=0)


def sound_figures(made: npt.NDArray[np.float32], prompt: npt.NDArray[np.float32]) -> dict[str, float]:
    """Figures of one continuation, beside its prompt; (N,) samples each.

    ``level_db``: of the frames that sound, against those of the prompt. ``silent``: share of silent frames.
    ``longest_silence``: seconds. ``in_tune`` and ``chroma``, the likeness to the prompt's: see `model.training.tuning`;
    left out where there is no peak.
    """
    levels, before = frame_levels(made), frame_levels(prompt)
    floor = float(np.quantile(before, LOUD_QUANTILE)) * 10 ** (SILENT_DB / 20) + 1e-6

    def sounding(of: npt.NDArray[np.float64]) -> float:
        loud = of[of >= floor]
        return float(np.sqrt(np.square(loud).mean())) if len(loud) else 1e-6

    quiet = levels < floor
    figures = {
        "level_db": 20 * float(np.log10(sounding(levels) / sounding(before))),
        "silent": float(quiet.mean()),
        "longest_silence": longest_run(quiet) / FRAME_RATE_HZ,
    }
    samples = torch.from_numpy(made)
    tuned, chroma = in_tune(samples), chroma_similarity(samples, torch.from_numpy(prompt))
    return figures if tuned is None or chroma is None else figures | {"in_tune": tuned, "chroma": chroma}


@dataclass(frozen=True)
class Continued:
    """One continuation: which prompt and seed, its samples (N,), log-probabilities (T,) and figures."""

    prompt: int
    seed: int
    samples: npt.NDArray[np.float32]
    logprobs: npt.NDArray[np.float32]
    figures: dict[str, float]


@torch.inference_mode()
def continued(
    bundle: Bundle,
    prompts: Sequence[Tensor],
    *,
    seconds: float = 5.0,
    seeds: Sequence[int] = (0,),
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    rows: int = 12,
) -> list[Continued]:
    """Continue each prompt, (N,) samples at 24 kHz, with each seed, as the server does; ``rows`` of them at a time."""
    frames = round(seconds * FRAME_RATE_HZ)
    jobs = [(prompt, seed) for prompt in range(len(prompts)) for seed in seeds]
    slots = backend_for(bundle, min(rows, len(jobs)))
    states: dict[int, Any] = {}
    out = []
    for start in range(0, len(jobs), slots.rows):
        batch = jobs[start : start + slots.rows]
        for row, (prompt, seed) in enumerate(batch):
            if prompt not in states:
                states = {prompt: prefill(bundle, prompts[prompt])}
            slots.join(row, states[prompt], SamplingOptions(temperature, top_k, top_p, seed))
        made = [slots.step(range(len(batch))) for _ in range(frames)]
        samples = np.concatenate([frame.samples for frame in made], 1)
        logprobs = np.stack([frame.logprobs for frame in made], 1)
        for row, (prompt, seed) in enumerate(batch):
            slots.leave(row)
            figures = sound_figures(samples[row], prompts[prompt].numpy()) | {"nll": -float(logprobs[row].mean())}
            out.append(Continued(prompt, seed, samples[row], logprobs[row], figures))
    return out


def heard(runs: Sequence[Continued], prompts: Sequence[Tensor], judge: Judge) -> list[Continued]:
    """The continuations with a judge's figures beside their own."""
    return [replace(run, figures=run.figures | judge(run.samples, prompts[run.prompt].numpy())) for run in runs]


def summary(runs: Sequence[Continued]) -> dict[str, float]:
    """Means over continuations, and the share of those with a silence of `TRAP_SECONDS` or more."""
    names = sorted({name for run in runs for name in run.figures})
    means = {name: float(np.mean([run.figures[name] for run in runs if name in run.figures])) for name in names}
    trapped = [run.figures["longest_silence"] >= TRAP_SECONDS for run in runs]
    return means | {"trapped": float(np.mean(trapped)), "continuations": len(runs)}


def drift(
    runs: Sequence[Continued], prompts: Sequence[Tensor], every: float = 5.0, judge: Judge | None = None
) -> list[dict[str, float]]:
    """Means over continuations, for each stretch of ``every`` seconds: `sound_figures`, NLL, and what a judge says."""
    frames = round(every * FRAME_RATE_HZ)
    stretches = []
    for first in range(0, min(len(run.logprobs) for run in runs) // frames * frames, frames):
        figures = []
        for run in runs:
            samples = run.samples[first * HOP_SAMPLES : (first + frames) * HOP_SAMPLES]
            prompt = prompts[run.prompt].numpy()
            own = sound_figures(samples, prompt) | (judge(samples, prompt) if judge is not None else {})
            figures.append(own | {"nll": -float(run.logprobs[first : first + frames].mean())})
        names = sorted({name for own in figures for name in own})
        means = {name: float(np.mean([own[name] for own in figures if name in own])) for name in names}
        stretches.append({"from_seconds": first / FRAME_RATE_HZ} | means)
    return stretches


def prompts_of(clips: Sequence[tuple[str, Tensor]], seconds: float, pause: float = 0.0) -> list[Tensor]:
    """The first ``seconds`` of clips that go on for a second or more, and ``pause`` seconds of silence behind each."""
    size, silence = round(seconds * SAMPLE_RATE_HZ), round(pause * SAMPLE_RATE_HZ)
    chosen = [samples[:size] for _, samples in clips if len(samples) >= size + SAMPLE_RATE_HZ]
    return [torch.cat([samples, torch.zeros(silence)]) for samples in chosen]
