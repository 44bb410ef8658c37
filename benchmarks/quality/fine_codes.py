"""What the depth decoder's fine codes are worth: their likelihood, and how they sound beside the true ones.

    python -m benchmarks.quality.fine_codes --speech FOLDER --music FOLDER --out benchmarks/results/fine_codes.json

The stack is teacher-forced with the clip's own coarse codes and real mel, so that every frame is aligned with the clip.
Only codebooks 2 to n are drawn anew, frame by frame, by the depth decoder; the codec decodes the true coarse codes with
the drawn fine ones. Beside it stand the same clip with its true fine codes, and with fine codes drawn at random from
codes of other frames of the same codebook (a control: fine codes that know nothing).
Differences are paired by clip, with 95 % bootstrap intervals over clips.

Log-mel distance, STOI and PESQ compare with the clip itself, and so charge codes that are drawn well for being others
than the true ones. The distance of `benchmarks/quality/latents.py` does not: it asks whether all clips together sound
like the real ones together.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.latents import Array, Space, distance, pooled
from model.checkpoint import Bundle, load_bundle
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.files import put_json
from model.inference.rng import uniforms
from model.inference.sampling import SamplingOptions, draw
from model.lm.depth_decoder import NO_CODE, frames_before
from model.lm.hybrid_lm import shift
from model.lm.mel import LogMel
from model.training.corpus import find_files
from model.training.evaluate import bootstrap, intelligibility, load_clips
from model.training.loop import machine
from model.training.losses import SpectralLoss

COUNTS = (2, 4, 8)
TEMPERATURES = (1.0, 0.7, 0.0)
SPECTRAL = SpectralLoss()


def drawn_codes(bundle: Bundle, hidden: Tensor, codes: Tensor, temperature: float, seed: int) -> Tensor:
    """Fine codes drawn frame by frame, each after the frame that was drawn before it.

    hidden (T, dim), codes (T, K) -> (T, K), the coarse ones as they were.
    """
    fine, options = bundle.lm.fine, SamplingOptions(temperature=temperature, seed=seed)
    numbers = torch.from_numpy(uniforms(seed, 0, 0, *codes.shape))
    frames = [torch.full_like(codes[:1], NO_CODE)]
    for at in range(len(codes)):
        made, total = [codes[at : at + 1, 0]], fine.start(hidden[at : at + 1], frames[-1])
        for book in range(1, codes.shape[1]):
            total = fine.add(total, book - 1, made[-1])
            made.append(draw(fine.logits(total, book), options, numbers[at : at + 1, book]))
        frames.append(torch.stack(made, 1))
    return torch.cat(frames[1:])


def shuffled_codes(codes: Tensor, seed: int) -> Tensor:
    """Each fine codebook's codes (T, K) put in another order: right by their counts, and in no frame."""
    rng = np.random.default_rng(seed)
    orders = [torch.arange(len(codes))]
    orders += [torch.from_numpy(rng.permutation(len(codes))) for _ in range(codes.shape[1] - 1)]
    return torch.stack([codes[order, book] for book, order in enumerate(orders)], 1)


def sound(made: Tensor, real: Tensor) -> dict[str, float]:
    """Log-mel distance (nats), STOI and wide-band PESQ of (N,) beside (N,)."""
    return {"log_mel": float(SPECTRAL(made[None], real[None])[0])} | intelligibility(made, real)


@dataclass(frozen=True)
class Clip:
    """What was measured on a clip."""

    figures: dict[str, dict[str, float]]  # by "COUNT/VARIANT"
    latents: dict[str, Array]  # the same, and "real": (pieces, 256)
    nll: Array  # (K - 1,) of the true fine codes, nats
    codes: Tensor  # (T, K)


def measured(bundle: Bundle, samples: Tensor, seed: int) -> Clip:
    """One clip (N,)."""
    codes = bundle.codec.encode(samples[None])[0].T  # (T, K)
    real = samples[: len(codes) * HOP_SAMPLES]
    tokens, mel_frames = shift(codes[None, :, 0], LogMel()(real[None]) if bundle.lm.config.mel else None)
    hidden = bundle.lm(tokens, mel_frames)[0]
    logprobs = bundle.lm.fine(hidden, codes, frames_before(codes[None])[0]).log_softmax(-1)
    nll = -logprobs.gather(-1, codes[:, 1:, None])[..., 0].mean(0)
    variants = {"true": codes, "shuffled": shuffled_codes(codes, seed)}
    waves = {"1/true": bundle.codec.decode(codes[None, :, :1].transpose(1, 2))}
    for count in (c for c in COUNTS if c <= codes.shape[1]):
        drawn = {f"drawn at {t:g}": drawn_codes(bundle, hidden, codes[:, :count], t, seed) for t in TEMPERATURES}
        for name, own in (variants | drawn).items():
            waves[f"{count}/{name}"] = bundle.codec.decode(own[None, :, :count].transpose(1, 2))
    figures = {name: sound(wave[0], real) for name, wave in waves.items()}
    latents = {name: pooled(bundle, wave)[0] for name, wave in {"real": real[None], **waves}.items()}
    return Clip(figures, latents, nll.numpy(), codes)


def summary(clips: list[Clip]) -> dict[str, Any]:
    """Means over clips, the paired difference from the true codes of as many codebooks, and distances of all clips."""
    rows = [clip.figures for clip in clips]
    real = [clip.latents["real"] for clip in clips]
    space = Space.of(np.concatenate(real))
    out: dict[str, Any] = {}
    for name in rows[0]:
        true = f"{name.split('/')[0]}/true"
        entry: dict[str, Any] = {}
        for figure in ("log_mel", "stoi", "pesq"):
            pairs = [
                (row[name][figure], row[true][figure]) for row in rows if figure in row[name] and figure in row[true]
            ]
            if not pairs:
                continue
            own, others = np.array(pairs).T
            entry[figure] = bootstrap(own) | {"clips": len(pairs)}
            if name != true:
                entry[f"{figure}_beside_true"] = bootstrap(own - others)
        made = [space.project(clip.latents[name]) for clip in clips]
        entry["distance"] = distance([space.project(one) for one in real], made)
        out[name] = entry
    return out


@torch.inference_mode()
def measure(bundle: Bundle, clips: list[tuple[str, Tensor]]) -> dict[str, Any]:
    """All figures on some clips."""
    found = []
    for seed, (name, samples) in enumerate(clips):
        found.append(measured(bundle, samples, seed))
        print(f"{seed + 1}/{len(clips)} {name}", flush=True)
    frames = [len(clip.codes) for clip in found]
    codes = torch.cat([clip.codes for clip in found])
    per_book = {}
    for book in range(1, codes.shape[1]):
        share = torch.bincount(codes[:, book]).double() / len(codes)
        entropy = float(-(share[share > 0] * share[share > 0].log()).sum())
        nll = bootstrap(np.array([clip.nll[book - 1] for clip in found]), frames)
        per_book[str(book + 1)] = {"nll": nll, "entropy": round(entropy, 4)}
    return {
        "clips": len(clips),
        "seconds": round(len(codes) * HOP_SAMPLES / SAMPLE_RATE_HZ, 1),
        "nll_per_codebook": per_book,
        "sound": summary(found),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("weights/default"))
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--music", type=Path, required=True)
    parser.add_argument("--max-seconds", type=float, default=10.0)
    parser.add_argument("--limit", type=int, default=100, help="clips of each kind, spread over the folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fine_codes.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle = load_bundle(arguments.bundle)
    report: dict[str, Any] = {"bundle": bundle.name, "hashes": bundle.hashes, "temperatures": TEMPERATURES}
    for kind in ("speech", "music"):
        files = find_files([getattr(arguments, kind)])
        spread = files[:: -(-len(files) // arguments.limit)]
        clips = load_clips(spread, None, arguments.max_seconds)
        report[kind] = measure(bundle, clips)
        report["conditions"] = machine() | {"max_seconds": arguments.max_seconds, "mel": "real"}
        put_json(arguments.out, report, indent=1)  # after each kind: a kill leaves the first


if __name__ == "__main__":
    main()
