"""Which bundle should ship: how their continuations of validation speakers and pieces sound, side by side.

    python -m benchmarks.quality.choose weights/default runs/lm/bundle    # with the extra `judges`; minutes on one core

Prompts of 3 s, 5 s made, at settings that users try first: level and silence, DNSMOS and the likeness of the voice for
speech, tune and chroma for music. Likelihoods are compared by `benchmarks/quality/compare_bundles.py`. Nothing is kept:
what was decided by it stands in docs/log.md. The test sets are not asked.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import ROOT, by_speaker, valid_clips
from benchmarks.quality.continuations import cut
from benchmarks.quality.silences import spread
from model.checkpoint import Bundle, load_bundle
from model.constants import SAMPLE_RATE_HZ
from model.training.continuations import continued, heard, summary
from model.training.corpus import Corpus
from model.training.judges import heard_figures

SETTINGS = ((1.0, 1.0), (0.8, 1.0), (0.9, 0.95))  # temperature and top-p
SEEDS = (1, 2)
PROMPT_SECONDS, MADE_SECONDS = 3.0, 5.0
SHOWN = {
    "speech": ("level_db", "trapped", "mos", "mos_signal", "mos_p808", "similarity", "nll"),
    "music": ("level_db", "trapped", "in_tune", "chroma", "nll"),
}


def speech_prompts(corpus: Path, count: int) -> list[Tensor]:
    """3 s (N,) each of ``count`` places in validation speech, spread over the speakers."""
    return spread(list(cut(list(by_speaker(valid_clips(corpus)).items())).prompts), count)


def music_prompts(corpus: Path, count: int) -> list[Tensor]:
    """3 s (N,) of each of up to ``count`` validation pieces, from 10 s on, where a piece has begun."""
    opened = Corpus(corpus)
    first, last = 10 * SAMPLE_RATE_HZ, round((10 + PROMPT_SECONDS) * SAMPLE_RATE_HZ)
    pieces = [opened.read(clip)[first:last] for clip in opened.split("valid", "music")]
    return spread([torch.from_numpy(piece) for piece in pieces if len(piece) == last - first], count)


def report(
    bundle: Bundle, kind: str, prompts: Sequence[Tensor], seconds: float = MADE_SECONDS
) -> list[dict[str, float]]:
    """A row of figures for each of `SETTINGS`: means over all prompts and seeds."""
    rows = []
    for temperature, top_p in SETTINGS:
        runs = continued(bundle, prompts, seconds=seconds, seeds=SEEDS, temperature=temperature, top_p=top_p)
        judged = heard(runs, prompts, heard_figures) if kind == "speech" else runs
        rows.append({"temperature": temperature, "top_p": top_p} | summary(judged))
    return rows


def main() -> None:
    """Print a line a bundle, kind and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "corpus", help="for its validation speakers")
    parser.add_argument("--speech", type=int, default=16, help="prompts")
    parser.add_argument("--music", type=int, default=6, help="prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prompts = {
        "speech": speech_prompts(arguments.corpus, arguments.speech),
        "music": music_prompts(arguments.corpus, arguments.music),
    }
    for folder in arguments.bundles:
        bundle = load_bundle(folder)
        for kind, some in prompts.items():
            for row in report(bundle, kind, some):
                shown = "  ".join(f"{name} {row[name]:.3f}" for name in SHOWN[kind] if name in row)
                print(f"{folder} {kind} T {row['temperature']:g} top-p {row['top_p']:g}  {shown}", flush=True)


if __name__ == "__main__":
    main()
