"""The free-running gap: what it costs that the mel of made frames comes from decoded audio, or late, or not at all.

    python -m benchmarks.quality.free_running         # some minutes on one core

Held-out NLL by teacher forcing with the mel of the clip (real), of its decoded codes (decoded), the same d frames late
(position t is given the slice of frame t - d), and none (masked). Then continuations of 30 s, closed loop (decoded) and
masked, second by second, beside real speech through the same codec. All is measured twice: on validation speakers,
by which a default may be chosen, and on the test speakers, which only report.
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
    ROOT,
    SPEECH,
    Subject,
    by_speaker,
    clips_in,
    rounded,
    valid_clips,
    write_json,
)
from benchmarks.quality import acoustics
from benchmarks.quality.continuing import coded, continue_all
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ
from model.inference.sampling import SamplingOptions
from model.lm.hybrid_lm import BOS, shift
from model.training.evaluate import bootstrap

DELAYS = (1, 2, 4, 8)
MAX_SECONDS = 30
PROMPT_SECONDS, LONG_SECONDS = 3, 30
MEASURES = ("token entropy", "surprise", "silence ratio", "level", "tilt")
UNITS = {"token entropy": "nats", "surprise": "nats", "silence ratio": "share", "level": "dB", "tilt": "dB an octave"}
SPANS = {"seconds 1 to 5": slice(0, 5), "seconds 26 to 30": slice(25, 30)}


def late(mel_frames: Tensor, masked: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Input mel frames (B, T, 64) and what is masked (B, T), ``frames`` positions later; the start is masked."""
    if frames == 0:
        return mel_frames, masked
    moved = torch.cat([torch.zeros_like(mel_frames[:, :frames]), mel_frames[:, :-frames]], 1)
    return moved, torch.cat([torch.ones_like(masked[:, :frames]), masked[:, :-frames]], 1)


@torch.inference_mode()
def clip_nll(bundle: Bundle, samples: Tensor) -> dict[str, float]:
    """Mean NLL of a clip (N,) for every source of mel, nats a token."""
    codes = bundle.codec.encode(samples[None])
    tokens = codes[:, 0]
    heard = samples[: codes.shape[-1] * HOP_SAMPLES][None]
    found = {}
    for source, wave, delays in (("real", heard, (0,)), ("decoded", bundle.codec.decode(codes), (0, *DELAYS))):
        inputs, mel_frames = shift(tokens, bundle.mel(wave))
        assert mel_frames is not None
        for delay in delays:
            mel, masked = late(mel_frames, inputs == BOS, delay)
            logits = bundle.lm.logits(bundle.lm(inputs, mel, masked)).float()
            found[f"{source}, {delay} late" if delay else source] = logits
    found["masked"] = bundle.lm.logits(bundle.lm(inputs)).float()
    return {
        name: -float(logits.log_softmax(-1).gather(-1, tokens[..., None]).double().mean())
        for name, logits in found.items()
    }


def gap(bundle: Bundle, clips: Sequence[tuple[str, str, Tensor]]) -> dict[str, Any]:
    """{source: {"nll", "above real"}} with intervals over clips."""
    rows, weights = [], []
    for _, _, samples in track(clips, description="teacher forcing"):
        heard = samples[: MAX_SECONDS * SAMPLE_RATE_HZ]
        rows.append(clip_nll(bundle, heard))
        weights.append(len(heard) // HOP_SAMPLES)
    real = np.array([row["real"] for row in rows])
    report = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        report[name] = {"nll": bootstrap(values, weights), "above real": bootstrap(values - real, weights)}
    return {"sources": report, "clips": len(rows), "tokens": sum(weights)}


def seconds_of(
    tokens: np.ndarray, logprobs: np.ndarray | None, samples: np.ndarray, prompt_db: list[float]
) -> dict[str, Any]:
    """Each measure, second by second: (rows, seconds) nested lists. Levels are relative to the prompts'."""
    rows, count = len(tokens), tokens.shape[1] // FRAME_RATE_HZ
    pieces = samples[:, : count * SAMPLE_RATE_HZ].reshape(rows, count, SAMPLE_RATE_HZ)
    in_seconds = tokens[:, : count * FRAME_RATE_HZ].reshape(rows, count, FRAME_RATE_HZ)
    found = {
        "token entropy": [[acoustics.entropy(second) for second in row] for row in in_seconds],
        "silence ratio": [
            [acoustics.silence_ratio(second, db) for second in row] for row, db in zip(pieces, prompt_db, strict=True)
        ],
        "level": [
            [acoustics.level_db(second) - db for second in row] for row, db in zip(pieces, prompt_db, strict=True)
        ],
        "tilt": [[acoustics.tilt_db(second) for second in row] for row in pieces],
    }
    if logprobs is not None:
        found["surprise"] = (-logprobs[:, : count * FRAME_RATE_HZ]).reshape(rows, count, FRAME_RATE_HZ).mean(2).tolist()
    return found


def stability(bundle: Bundle, speakers: dict[str, Tensor], temperature: float, seed: int) -> dict[str, Any]:
    """Long continuations of each speaker's first seconds, and what the speaker really says next, through the codec."""
    needed = (PROMPT_SECONDS + LONG_SECONDS) * SAMPLE_RATE_HZ
    said = torch.stack([torch.from_numpy(np.resize(samples.numpy(), needed)) for samples in speakers.values()])
    prompts = said[:, : PROMPT_SECONDS * SAMPLE_RATE_HZ]
    prompt_db = [acoustics.level_db(prompt.numpy()) for prompt in prompts]
    options = SamplingOptions(temperature, seed=seed)
    by_source: dict[str, dict[str, Any]] = {}
    for source in ("decoded", "masked"):
        subject = Subject(source, bundle, source == "masked")
        made = continue_all(subject, prompts, LONG_SECONDS * FRAME_RATE_HZ, options, f"30 s, {source}")
        by_source[source] = seconds_of(made.tokens, made.logprobs, made.samples, prompt_db)
    with torch.inference_mode():
        tokens = torch.cat([bundle.codec.encode(row[None])[:, 0] for row in said])
    heard = coded(Subject("codec", bundle), said)
    after = PROMPT_SECONDS * FRAME_RATE_HZ, PROMPT_SECONDS * SAMPLE_RATE_HZ
    by_source["real speech"] = seconds_of(tokens[:, after[0] :].numpy(), None, heard[:, after[1] :].numpy(), prompt_db)
    report: dict[str, Any] = {}
    for source, measures in by_source.items():
        for name, values in measures.items():
            table = np.array(values)  # (rows, seconds)
            one: dict[str, Any] = {"by second": table.mean(0).tolist()}
            one |= {span: bootstrap(table[:, part].mean(1)) for span, part in SPANS.items()}
            early, end = (table[:, part].mean(1) for part in SPANS.values())
            one["drift"] = bootstrap(end - early)
            report.setdefault(source, {})[name] = one
    return {"sources": report, "streams": len(said), "temperature": temperature, "prompt_seconds": PROMPT_SECONDS}


def plot(report: dict[str, Any], path: Path) -> None:
    """The measures second by second. Needs matplotlib (extra `train`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for place, name in enumerate(MEASURES):
        axes = figure.add_subplot(1, len(MEASURES), place + 1)
        for source, measures in report["sources"].items():
            if name in measures:
                values = measures[name]["by second"]
                axes.plot(np.arange(1, len(values) + 1), values, label=source, linewidth=1)
        axes.set_title(f"{name}, {UNITS[name]}", fontsize=8)
        axes.set_xlabel("second", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Measure, print, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--clips", type=Path, default=SPEECH, help="test clips, named SPEAKER-...")
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "corpus", help="for its validation speakers")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "free_running.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "results" / "free_running.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    body: dict[str, Any] = {"bundle": bundle.name, "hashes": bundle.hashes, "seed": arguments.seed}
    for split, clips in (("validation", valid_clips(arguments.corpus)), ("test", clips_in(arguments.clips))):
        found = {"gap": gap(bundle, clips)}
        for name, figure in found["gap"]["sources"].items():
            print(f"{split:10} {name:16} {figure['nll']['mean']:.3f}  above real {figure['above real']['mean']:+.3f}")
        found["stability"] = stability(bundle, by_speaker(clips), arguments.temperature, arguments.seed)
        for source, measures in found["stability"]["sources"].items():
            for name, one in measures.items():
                means = " ".join(f"{one[key]['mean']:+.3f}" for key in (*SPANS, "drift"))
                print(f"{split:10} {source:12} {name:14} {means}")
        body[split] = found
    write_json(arguments.out, rounded(body))
    plot(body["test"]["stability"], arguments.plot)


if __name__ == "__main__":
    main()
