"""Two bundles of one tokeniser on the validation split: which one should ship? Test clips are not asked.

    python -m benchmarks.quality.compare_bundles runs/lm-b/bundle weights/default --tokens runs/lm-b/tokens

Every validation document is scored alone with the mel of the clip, of the codec's decoder, and with none; the codes of
books 2 to 8 by the depth decoder, with the real mel. Differences (first - second) are paired by document, with 95 %
bootstrap intervals.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.quality.table_report import Bootstrap
from model.checkpoint import Bundle, load_bundle, tokeniser_sha256
from model.files import put_json
from model.lm.depth_decoder import frames_before
from model.training.loop import machine
from model.training.token_set import Document, TokenSet
from model.training.train_lm import document_batch

SOURCES = ("real", "decoded", "masked")


@torch.inference_mode()
def document_sums(bundle: Bundle, tokens: TokenSet, document: Document) -> dict[str, float]:
    """Sums of NLL in nats over a document: of the coarse tokens for each source of mel, of each fine book's codes."""
    model, out = bundle.lm, {}
    for source in SOURCES:
        batch = document_batch(tokens, document, decoded=source == "decoded")
        masked = torch.ones_like(batch.masked) if source == "masked" else batch.masked
        hidden = model(batch.inputs, batch.mel, masked)
        logprobs = model.logits(hidden).log_softmax(-1)
        out[source] = -float(logprobs.gather(-1, batch.codes[..., :1]).double().sum())
        if source == "real":
            fine = model.fine(hidden, batch.codes, frames_before(batch.codes)).log_softmax(-1)  # (1, T, K - 1, 1024)
            nll = -fine.gather(-1, batch.codes[..., 1:, None]).double().sum((0, 1, 3))
            out |= {f"book {book}": float(value) for book, value in enumerate(nll, 2)}
            out["fine"] = float(nll.mean())
    return out


def compare(one: Bundle, other: Bundle, tokens: TokenSet, limit: int | None = None) -> dict[str, Any]:
    """Per kind and figure: both bundles' NLL and the difference, {"first", "second", "difference"}."""
    for bundle in (one, other):
        assert tokeniser_sha256(bundle.codec) == tokens.made_from["codec_sha256"], (
            f"{bundle.name} has another tokeniser"
        )
    report: dict[str, Any] = {}
    for kind in ("speech", "music"):
        documents = tokens.of("valid", kind)[:limit]
        if not documents:
            continue
        boot = Bootstrap([document.frames for document in documents])
        found = [
            [document_sums(bundle, tokens, document) for document in track(documents, description=f"{kind}, {name}")]
            for name, bundle in (("first", one), ("second", other))
        ]
        report[kind] = {"documents": len(documents), "tokens": int(boot.frames.sum())}
        for name in found[0][0]:
            first, second = (np.array([[sums[name] for sums in part]]) for part in found)
            report[kind][name] = {
                "first": boot.figure(first),
                "second": boot.figure(second),
                "difference": boot.difference(first, second),
            }
    return report


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="so many documents of a kind at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compare_bundles.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    first, second = load_bundle(arguments.first), load_bundle(arguments.second)
    report = compare(first, second, TokenSet(arguments.tokens), arguments.limit)
    names = {"first": first.hashes, "second": second.hashes}
    for kind, figures in report.items():
        for name, row in figures.items():
            if isinstance(row, dict):
                apart = row["difference"]
                print(f"{kind:7}{name:9}{row['first']['mean']:8.4f}{row['second']['mean']:8.4f}"
                      f"  {apart['mean']:+.4f} ({apart['low']:+.4f} to {apart['high']:+.4f})")  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    put_json(arguments.out, {"conditions": machine(), "bundles": names, "validation": report}, indent=1)


if __name__ == "__main__":
    main()
