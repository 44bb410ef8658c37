"""Silence traps: how many continuations of speech fall silent, over the settings that a user tries first.

    python -m benchmarks.quality.silences     # some minutes on one core

Prompts of 3 s, 5 s made, two seeds each, at every temperature and top-p of a grid, after sound and after pauses of
zeros, as recordings end in. A continuation is trapped when it is silent for `TRAP_SECONDS` at a stretch: 40 dB below
the prompt's loud frames. Measured on validation speakers, by which sampling is chosen, and on the test speakers, which
only report.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from benchmarks.common import DEFAULT, RESULTS, ROOT, SPEECH, by_speaker, clips_in, rounded, valid_clips, write_json
from benchmarks.quality.continuations import cut
from model.checkpoint import Bundle, load_bundle
from model.training.continuations import SILENT_DB, TRAP_SECONDS, continued, prompts_of, summary

PROMPT_SECONDS, MADE_SECONDS = 3.0, 5.0
TEMPERATURES, TOP_P, PAUSES = (1.0, 0.9, 0.8, 0.7), (1.0, 0.9), (0.0, 0.15, 0.5)
SEEDS = (1, 2)
PROMPTS = 16
ROWS = 16  # continued at a time


def spread(items: Sequence[Tensor], count: int) -> list[Tensor]:
    """``count`` of them at most, evenly over their order, which is that of speakers."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else list(items)


def measure(
    bundle: Bundle,
    pieces: Sequence[Tensor],
    temperatures: Sequence[float] = TEMPERATURES,
    top_ps: Sequence[float] = TOP_P,
    pauses: Sequence[float] = PAUSES,
    seconds: float = MADE_SECONDS,
) -> list[dict[str, float]]:
    """A row of figures for every temperature, top-p and pause, of continuations of the pieces (N,) at 24 kHz."""
    grid = [(t, p, pause) for t in temperatures for p in top_ps for pause in pauses]
    rows = []
    for temperature, top_p, pause in track(grid, description="settings"):
        prompts = prompts_of([("", piece) for piece in pieces], PROMPT_SECONDS, pause)
        runs = continued(bundle, prompts, seconds=seconds, seeds=SEEDS, temperature=temperature, top_p=top_p, rows=ROWS)
        told = summary(runs)
        kept = {name: told[name] for name in ("trapped", "silent", "longest_silence", "level_db", "continuations")}
        rows.append({"temperature": temperature, "top_p": top_p, "pause": pause} | kept)
    return rows


def main() -> None:
    """Measure both splits, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--clips", type=Path, default=SPEECH, help="test clips, named SPEAKER-...")
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "corpus", help="for its validation speakers")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each split")
    parser.add_argument("--out", type=Path, default=RESULTS / "silences.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    splits = {
        "validation": list(by_speaker(valid_clips(arguments.corpus)).items()),  # short clips, put together
        "test": [(speaker, samples) for _, speaker, samples in clips_in(arguments.clips)],
    }
    body: dict[str, Any] = {}
    for split, speech in splits.items():
        found = cut(speech)
        pieces = spread(list(torch.cat([found.prompts, found.truth], 1)), arguments.prompts)
        body[split] = {"prompts": len(pieces), "rows": measure(bundle, pieces)}
        for row in body[split]["rows"]:
            print(f"{split:10}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    body["conditions"] = {
        "bundle": bundle.name, "hashes": bundle.hashes, "prompt_seconds": PROMPT_SECONDS, "made_seconds": MADE_SECONDS,
        "trap_seconds": TRAP_SECONDS, "silent_db": SILENT_DB, "seeds": SEEDS,
    }  # fmt: skip
    write_json(arguments.out, rounded(body))


if __name__ == "__main__":
    main()
