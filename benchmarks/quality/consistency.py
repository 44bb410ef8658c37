"""Does the model find a clip that goes on as it began likelier than one that changes at its midpoint?

    python -m benchmarks.quality.consistency          # a few minutes on one core
    python -m benchmarks.quality.consistency --model "gpt-s=runs/table/runs/gpt-s-seed0" --model hybrid=weights/default

The pairs are made by `benchmarks/quality/consistency_pairs.py`. Four scores judge them, all of which POST /score gives:
the mean NLL of the whole clip, that of a window after the joint, and the window's less a baseline: the bundle's
unigram, or the model's own NLL of the window read alone (arXiv 2601.06329). A tie counts half. Accuracy has a 95 %
bootstrap interval over the clips that pairs begin from.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.common import (
    DEFAULT,
    RESULTS,
    SPEECH,
    Subject,
    clips_in,
    default_models,
    load_subjects,
    logprobs,
    rounded,
    write_json,
)
from benchmarks.quality import consistency_pairs as made
from model.constants import FRAME_RATE_HZ
from model.training.evaluate import bootstrap

WINDOW_FRAMES = 75  # 1 s after the joint; set before anything was measured
SCORES = ("whole", "window", "window - unigram", "window - alone")
BATCH = 2  # pairs encoded at a time: larger tensors cost more in fresh memory than they save


@torch.inference_mode()
def score_clips(subject: Subject, tokens: Tensor, mel_frames: Tensor) -> dict[str, Tensor]:
    """Each score of clips with their joint in the middle, tokens (B, T), mel frames (B, T, 64): (B,), nats a token."""
    joint = tokens.shape[1] // 2
    window = slice(joint, joint + WINDOW_FRAMES)
    whole = -logprobs(subject, tokens, mel_frames)
    alone = -logprobs(subject, tokens[:, window], mel_frames[:, window])
    unigram = -subject.bundle.lm.unigram[tokens[:, window]]
    local = whole[:, window].double().mean(1)
    return {
        "whole": whole.double().mean(1),
        "window": local,
        "window - unigram": local - unigram.double().mean(1),
        "window - alone": local - alone.double().mean(1),
    }


def verdicts(consistent: Tensor, changed: Tensor) -> list[float]:
    """1 where the consistent clip has the lower score, 0 where the changed one has, 0.5 for a tie."""
    return [float(x) for x in (consistent < changed).double() + 0.5 * (consistent == changed).double()]


def accuracy(bases: Sequence[str], right: Sequence[float]) -> dict[str, float]:
    """The share of right verdicts; the interval draws bases, so that pairs that share a clip stay together."""
    by_base: dict[str, list[float]] = {}
    for base, verdict in zip(bases, right, strict=True):
        by_base.setdefault(base, []).append(verdict)
    values = list(by_base.values())
    return bootstrap([np.mean(one) for one in values], [len(one) for one in values])


def measure(subjects: Sequence[Subject], pairs: Sequence[made.Pair]) -> dict[str, dict[str, dict[str, Any]]]:
    """{model: {kind: {score: accuracy}}}, with "all" for the kinds together. The models must share their codec."""
    bundle = subjects[0].bundle
    right: dict[tuple[str, str, str], list[float]] = {}
    bases: dict[str, list[str]] = {}
    for start in track(range(0, len(pairs), BATCH), description="pairs"):
        some = pairs[start : start + BATCH]
        samples = torch.from_numpy(
            np.stack([clip for pair in some for clip in (pair.consistent, pair.changed)])
        ).float()
        with torch.inference_mode():
            tokens, mel_frames = bundle.codec.encode(samples)[:, 0], bundle.mel(samples)
        for pair in some:
            bases.setdefault(pair.kind, []).append(pair.base)
        for subject in subjects:
            for name, values in score_clips(subject, tokens, mel_frames).items():
                for pair, verdict in zip(some, verdicts(values[0::2], values[1::2]), strict=True):
                    right.setdefault((subject.name, pair.kind, name), []).append(verdict)
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for subject in subjects:
        kinds = report.setdefault(subject.name, {})
        for kind, of_kind in bases.items():
            kinds[kind] = {name: accuracy(of_kind, right[subject.name, kind, name]) for name in SCORES}
        every = [base for of_kind in bases.values() for base in of_kind]
        kinds["all"] = {
            name: accuracy(every, [x for kind in bases for x in right[subject.name, kind, name]]) for name in SCORES
        }
    return report


def main() -> None:
    """Make the pairs, score them, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="NAME=FOLDER[:masked], a bundle or a table's run; repeat")
    parser.add_argument("--bundle", type=Path, default=DEFAULT, help="whose codec the runs use")
    parser.add_argument("--clips", type=Path, default=SPEECH)
    parser.add_argument("--bases", type=int, default=60, help="clips to begin from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "consistency.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subjects = load_subjects(arguments.model or default_models(arguments.bundle), arguments.bundle)
    clips = [(name, speaker, samples.double().numpy()) for name, speaker, samples in clips_in(arguments.clips)]
    pairs = list(made.pairs(clips, arguments.bases, arguments.seed))
    conditions = {
        "half_seconds": made.HALF_FRAMES / FRAME_RATE_HZ,
        "window_seconds": WINDOW_FRAMES / FRAME_RATE_HZ,
        "rt60_seconds": made.RT60_SECONDS,
        "snr_db": made.SNR_DB,
        "gain_db": made.GAIN_DB,
        "tilt_db_an_octave": made.TILT_DB,
        "noises": made.COLOURS,
        "pairs": {kind: sum(pair.kind == kind for pair in pairs) for kind in made.KINDS},
        "clips": len({pair.base for pair in pairs}),
        "speakers": len({speaker for name, speaker, _ in clips if any(pair.base == name for pair in pairs)}),
        "seed": arguments.seed,
    }
    report = measure(subjects, pairs)
    for model, kinds in report.items():
        for kind, scores in kinds.items():
            print(f"{model:28} {kind:8}", "  ".join(f"{name} {one['mean']:.3f}" for name, one in scores.items()))
    described = {subject.name: subject.described() for subject in subjects}
    write_json(arguments.out, rounded({"accuracy": report, "models": described, "conditions": conditions}))


if __name__ == "__main__":
    main()
