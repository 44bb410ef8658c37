"""What a codec's tokens carry: small networks read it off the dequantised latents of held-out speakers.

    python -m benchmarks.quality.token_probe --corpus runs/corpus --codes runs/codes --out token_probe.json

Asked for are, of a frame, from its latent and the eight before it (9 x 128 numbers):

* `waveform`: its samples below 1.2 kHz, scaled to unit level. R2 above 0 says that phase is in the tokens;
* `mel`: its log-mel frame, as R2 (a check that the probe works);
* `pitch`: of voiced frames of speech: share within 50 cents, and median error in cents.

Training speakers train it, validation speakers judge it; the test sets are not touched.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn

from benchmarks.common import DEFAULT, RESULTS
from model.checkpoint import load_bundle, tokeniser_sha256
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, LATENT_DIM, SAMPLE_RATE_HZ
from model.files import put_json
from model.lm.mel import LogMel
from model.training.code_set import CodedClip, CodeSet, build_codes
from model.training.corpus import Corpus
from model.training.loop import machine
from model.training.pitch import pitch

CONTEXT = 9  # frames, the present one last
LOW_RATE_HZ = 2400  # of the waveform that is asked for
LONGEST = 600  # frames of a clip


def pairs(codes: CodeSet, books: Tensor, clips: list[CodedClip], frames: int) -> dict[str, Tensor]:
    """Latents with context (n, 9 x 128), and what is asked for, of about ``frames`` frames."""
    mel = LogMel()
    parts: dict[str, list[Tensor]] = {}
    count = 0
    for coded in (c for c in clips if c.frames >= 100):
        if count >= frames:
            break
        length = min(coded.frames, LONGEST)
        tokens = torch.from_numpy(codes.read(coded, 0, length).astype(np.int64))
        latents = torch.stack([books[book][tokens[:, book]] for book in range(tokens.shape[1])]).sum(0)
        samples = codes.corpus.read(coded.clip, 0, length * HOP_SAMPLES)
        low = torch.from_numpy(soxr.resample(samples, SAMPLE_RATE_HZ, LOW_RATE_HZ))[: length * LOW_RATE_HZ // 75]
        low = nn.functional.pad(low, (0, length * LOW_RATE_HZ // 75 - len(low))).view(length, -1)
        real = torch.from_numpy(samples)[None]
        hertz, voiced = pitch(real)
        wide = torch.cat([latents[at : length - CONTEXT + 1 + at] for at in range(CONTEXT)], 1)
        level = low.square().mean(1, keepdim=True).sqrt()
        rows = {
            "latents": wide,
            "waveform": (low / (level + 3e-3))[CONTEXT - 1 :],
            "mel": mel(real)[0, CONTEXT - 1 :],
            "pitch": hertz[0, CONTEXT - 1 :].log2()[:, None],
            "voiced": voiced[0, CONTEXT - 1 :],
        }
        for name, value in rows.items():
            parts.setdefault(name, []).append(value)
        count += len(wide)
    return {name: torch.cat(values) for name, values in parts.items()}


def probe(inputs: Tensor, wanted: Tensor, others: Tensor, steps: int, robust: bool) -> Tensor:
    """Train on (n, in) -> (n, out), predict for (m, in): two hidden layers of 512, a tenth of the inputs dropped."""
    torch.manual_seed(0)
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-3
    middle, width = wanted.mean(0), wanted.std(0).mean()
    net = nn.Sequential(
        nn.Dropout(0.1), nn.Linear(inputs.shape[1], 512), nn.GELU(), nn.Dropout(0.2), nn.Linear(512, 512), nn.GELU(),
        nn.Linear(512, wanted.shape[1]),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), 7e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        picks = torch.randint(0, len(inputs), (512,))
        error = net((inputs[picks] - mean) / deviation) - (wanted[picks] - middle) / width
        loss = error.abs().mean() if robust else error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        out: Tensor = net((others - mean) / deviation) * width + middle
    return out


def explained(guess: Tensor, real: Tensor) -> float:
    """R2: the share of the variance that a guess explains; 0 for the mean, below 0 for worse."""
    return 1 - float((guess - real).square().sum() / (real - real.mean(0)).square().sum())


def main() -> None:
    """Train the probes, judge them, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--codes", type=Path, default=Path("runs/codes"), help="where the codes are kept")
    parser.add_argument("--frames", type=int, default=80_000, help="of training, for each kind")
    parser.add_argument("--steps", type=int, default=500, help="of each probe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "token_probe.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle, corpus = load_bundle(arguments.bundle), Corpus(arguments.corpus)
    codes = build_codes(corpus, bundle.codec, {"speech": 2.5, "music": 0.8}, arguments.codes)
    books = bundle.codec.codebooks().detach()
    report: dict[str, Any] = {"tokeniser": tokeniser_sha256(bundle.codec)}
    for kind in ("speech", "music"):
        order = np.random.default_rng(0).permutation(len(codes.split("train", kind)))
        train = pairs(codes, books, [codes.split("train", kind)[at] for at in order], arguments.frames)
        valid = pairs(codes, books, codes.split("valid", kind), 20_000)
        found: dict[str, Any] = {"train_frames": len(train["latents"]), "valid_frames": len(valid["latents"])}
        for name in ("waveform", "mel"):
            guess = probe(train["latents"], train[name], valid["latents"], arguments.steps, robust=False)
            found[f"{name}_r2"] = round(explained(guess, valid[name]), 4)
        if kind == "speech":
            heard, judged = train["voiced"], valid["voiced"]
            inputs, others = train["latents"][heard], valid["latents"][judged]
            guess = probe(inputs, train["pitch"][heard], others, arguments.steps, robust=True)
            cents = 1200 * (guess - valid["pitch"][judged]).abs()
            same = 1200 * (train["pitch"][heard].median() - valid["pitch"][judged]).abs()
            found["pitch"] = {
                "voiced_frames": int(judged.sum()),
                "within_50_cents": round(float((cents < 50).float().mean()), 4),
                "median_cents": round(float(cents.median()), 1),
                "within_50_cents_of_the_median": round(float((same < 50).float().mean()), 4),
            }
        report[kind] = found
        print(kind, found, flush=True)
    settings = {"context_frames": CONTEXT, "steps": arguments.steps, "dimensions": CONTEXT * LATENT_DIM}
    report["conditions"] = machine() | settings | {"frame_rate_hz": FRAME_RATE_HZ}
    put_json(arguments.out, report, indent=1)


if __name__ == "__main__":
    main()
