"""The paper's table with its controls: train every row on the same tokens, measure it on the same test clips.

    make table                                                     # or, with other folders or a GPU:
    python -m benchmarks.quality.table --speech DIR --music DIR --device cuda

DIR holds ``train`` and ``test``: audio of speech, MIDI of music. The learning rate of each preset is chosen on
validation speakers and pieces; test clips are only measured. Whatever was cut off goes on where it stopped,
and a finished run is not repeated. Each run's sums over utterances lie in its folder, and
`benchmarks/quality/table_report.py` makes figures of them, `python -m benchmarks.report.tables` the page.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.quality.table_data import Mel, Variant, build_set, build_test_set
from benchmarks.quality.table_report import write
from model.files import put_json
from model.lm.config import PRESETS
from model.lm.hybrid_lm import HybridLM
from model.training.corpus import DataError, build_corpus
from model.training.export import find_codec
from model.training.loop import Run, machine
from model.training.token_set import Document, TokenSet, TokenSettings
from model.training.train_lm import EARLIER, LMTraining, document_batch, train_lm

KINDS = ("speech", "music")
SMALL_RATES = (1e-3, 2e-3)


@dataclass(frozen=True)
class Row:
    """A row of the table: a preset and what mel it is given. Rows of one preset share a rate, found by the first."""

    name: str
    preset: str
    mel: Mel
    rates: tuple[float, ...]
    repeats: bool = True  # with every seed; large ones take the first alone
    kind: str = ""  # trained and tested on this one alone, with as many tokens of it as the others see
    times: int = 1  # as many steps as the plan says


ROWS = (
    Row("gpt-s", "gpt-s", "real", SMALL_RATES),
    Row("hybrid-4m", "hybrid-4m", "real", SMALL_RATES),
    Row("hybrid-4m, shuffled mel", "hybrid-4m", "shuffled", SMALL_RATES),
    Row("hybrid-4m, leaky mel", "hybrid-4m", "leaky", SMALL_RATES),
    Row("hybrid-4m, decoded mel", "hybrid-4m", "decoded", SMALL_RATES),
    Row("hybrid-4m, speech alone", "hybrid-4m", "real", SMALL_RATES, kind="speech"),
    Row("hybrid-4m, music alone", "hybrid-4m", "real", SMALL_RATES, kind="music"),
    Row("gpt-l", "gpt-l", "real", (5e-4, 1e-3), repeats=False),
    Row("hybrid-4m, twice as long", "hybrid-4m", "real", SMALL_RATES, repeats=False, times=2),
    Row("gpt-l, twice as long", "gpt-l", "real", (5e-4, 1e-3), repeats=False, times=2),
)


@dataclass(frozen=True)
class Plan:
    """How long, and how often. The defaults made the figures on the tokens of the codec that ships."""

    steps: int = 1500
    batch: int = 2  # small: at so few tokens, what counts is the number of steps
    length: int = 256  # the last quarter has half as many sequences of twice the length
    warmup: int = 64
    music_share: float = 0.3  # of the tokens
    seeds: int = 3
    validations: int = 6  # in a run
    validate_frames: int = 4_000  # of each kind, for the curve
    final_frames: int = 12_000  # of each kind, at the end: what the sweep chooses by
    rows: tuple[Row, ...] = ()

    def share(self, kind: str) -> float:
        """Of the tokens: those of a kind, or all."""
        return {"": 1.0, "music": self.music_share, "speech": 1 - self.music_share}[kind]

    def training(self, rate: float, seed: int, kind: str = "", times: int = 1) -> LMTraining:
        """Settings that ask one question: coarse tokens from one mel stream, with neither noise nor masks."""
        steps = max(round(self.steps * self.share(kind)), 1) * times
        music_share = float(kind == "music") if kind else self.music_share
        return LMTraining(
            steps=steps, batch=self.batch, length=self.length, rate=rate, warmup=min(self.warmup, steps // 2),
            seed=seed, music_share=music_share, decoded_share=0.0, noise=0.0, masked_share=0.0, span_share=0.0,
            fine_weight=0.0, bf16=True,
        )  # fmt: skip

    def tokens_seen(self, kind: str = "", times: int = 1) -> int:
        """Of one run; the long sequences of its end are fewer, so that a step stays what it is."""
        return self.training(0.0, 0, kind, times).steps * self.batch * self.length


@torch.no_grad()
def utterances(model: HybridLM, tokens: TokenSet, documents: list[Document], device: str) -> list[dict[str, Any]]:
    """Of each document, scored alone in float32: {"clip", "frames", "nll": sum in nats, "correct": hits}."""
    model.eval()
    out = []
    for document in documents:
        batch = document_batch(tokens, document).to(device)
        mel = (batch.mel, batch.masked) if model.config.mel else (None, None)
        logits = model.logits(model(batch.inputs, *mel))[0].float()
        targets = batch.codes[0, :, 0]
        nll = float(F.cross_entropy(logits, targets, reduction="sum"))
        hits = int((logits.argmax(-1) == targets).sum())
        out.append({"clip": document.clip, "frames": document.frames, "nll": nll, "correct": hits})
    return out


def first_frames(documents: list[Document], frames: int) -> list[Document]:
    """The first documents that fill ``frames``."""
    before = np.cumsum([0, *(document.frames for document in documents)])
    return [document for document, start in zip(documents, before, strict=False) if start < frames]


def mean_nll(found: dict[str, list[dict[str, Any]]]) -> float:
    """Nats a token of each kind, averaged over the kinds: what a rate is chosen by."""
    return float(np.mean([sum(u["nll"] for u in one) / sum(u["frames"] for u in one) for one in found.values()]))


@dataclass(frozen=True)
class Table:
    """The folder of a table, its plan and where it runs."""

    work: Path
    plan: Plan
    device: str
    kinds: tuple[str, ...]

    def run(self, row: Row, rate: float, seed: int, test: bool) -> dict[str, Any]:
        """Train and measure once, on the test clips only when asked to; what was done is read from the run's folder."""
        plan, config = self.plan, replace(PRESETS[row.preset], fine_recall=False)  # no depth decoder is trained
        name = f"{row.name.replace(',', '').replace(' ', '-')}-rate{rate:g}-seed{seed}"
        training = plan.training(rate, seed, row.kind, row.times)
        kinds = (row.kind,) if row.kind else self.kinds
        tokens = Variant(self.work / "tokens", row.mel)
        if row.mel == "decoded":  # another decoder is another row
            name += f"-by-{tokens.decoder[:8]}"
        out = self.work / "runs" / name
        result = out / "result.json"
        settings = {"config": asdict(config), "training": asdict(training), "tokens": tokens.made_from}
        log = Run(
            out, json.loads(json.dumps(settings)), EARLIER
        )  # refuses what was made with other settings, finished or not
        found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
        if found and (found["test"] or not test):
            return found
        print(f"{name}: {training.steps} steps", flush=True)
        started = time.monotonic()
        every = max(training.steps // plan.validations, 1)
        for _ in train_lm(config, training, tokens, out, self.device, every, plan.validate_frames):
            pass
        model = HybridLM(config)
        state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        model.to(self.device)
        valid = {kind: first_frames(tokens.of("valid", kind), plan.final_frames) for kind in kinds}
        made = {
            "row": row.name,
            "seed": seed,
            "rate": rate,
            "parameters": model.parameter_count(),
            "valid": {kind: utterances(model, tokens, documents, self.device) for kind, documents in valid.items()},
            "test": {kind: self.tested(model, row.mel, kind) for kind in kinds} if test else {},
            "curve": [entry for entry in log.history() if any(f"valid_{kind}" in entry for kind in kinds)],
            "seconds": found.get("seconds", 0) + round(time.monotonic() - started),
        }
        put_json(result, made)
        return made

    def tested(self, model: HybridLM, mel: Mel, kind: str) -> list[dict[str, Any]]:
        """The test clips of a kind, in the order of their names."""
        tokens = Variant(self.work / f"test-{kind}" / "tokens", mel, valid_percent=100)
        return utterances(model, tokens, sorted(tokens.documents, key=lambda d: (d.clip, d.start)), self.device)

    def sweep(self, row: Row) -> tuple[float, dict[str, float]]:
        """The best rate of a preset on validation, and what each gave: whole runs, of which the best is seed 0's."""
        basis = next(one for one in self.plan.rows if one.preset == row.preset)
        tried = {rate: mean_nll(self.run(basis, rate, 0, test=False)["valid"]) for rate in row.rates}
        return min(tried, key=lambda rate: tried[rate]), {f"{rate:g}": value for rate, value in tried.items()}

    def unigram(self) -> dict[str, Any]:
        """The baseline that knows no context, in the shape of a run's result."""
        train = Variant(self.work / "tokens", "real")
        logprobs = train.unigram().numpy()
        test: dict[str, list[dict[str, Any]]] = {}
        for kind in self.kinds:
            tokens = Variant(self.work / f"test-{kind}" / "tokens", "real", valid_percent=100)
            for document in sorted(tokens.documents, key=lambda d: (d.clip, d.start)):
                codes = tokens.codes[document.start : document.start + document.frames, 0]
                sums = {"nll": -float(logprobs[codes].sum()), "correct": int((codes == logprobs.argmax()).sum())}
                test.setdefault(kind, []).append({"clip": document.clip, "frames": document.frames, **sums})
        seen = sum(document.frames for document in train.of("train"))
        return {"row": "unigram", "seed": 0, "parameters": 1023, "tokens": seen, "test": test, "curve": []}

    def results(self, only: set[str]) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, float]]]]:
        """Run by run, the first seed of every row first: (result, sweeps so far); of the rows in ``only``, if any."""
        rates: dict[str, float] = {}
        sweeps: dict[str, dict[str, float]] = {}
        for seed in range(self.plan.seeds):
            for row in self.plan.rows:
                if (only and row.name not in only) or (seed and not row.repeats):
                    continue
                if row.kind and len(self.kinds) < 2:  # there is but one: the other rows are alone with it already
                    continue
                if row.preset not in rates:
                    rates[row.preset], sweeps[row.preset] = self.sweep(row)
                seen = {"tokens": self.plan.tokens_seen(row.kind, row.times)}
                yield self.run(row, rates[row.preset], seed, test=True) | seen, sweeps


def prepare(arguments: argparse.Namespace) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Corpora, tokens and mels; returns the kinds there are, and what they were made from."""
    codec, sha256 = find_codec(arguments.codec)
    folders = {kind: path for kind in KINDS if (path := getattr(arguments, kind)) is not None}
    for path in (path / part for path in folders.values() for part in ("train", "test")):
        if not path.is_dir():
            raise DataError(f"no folder {path}")
    corpus = build_corpus([path / "train" for path in folders.values()], arguments.corpus, arguments.workers)
    settings = TokenSettings(speech_hours=arguments.speech_hours, music_hours=arguments.music_hours)
    made = build_set(corpus, codec, sha256, settings, arguments.work / "tokens", arguments.device)
    for kind, path in folders.items():
        where = arguments.work / f"test-{kind}"
        build_test_set(path / "test", kind, codec, sha256, where, arguments.device, arguments.workers)
    tokens = Variant(arguments.work / "tokens", "real")
    hours = {
        f"{kind} ({split})": round(sum(d.frames for d in tokens.of(split, kind)) / 75 / 3600, 3)
        for kind in folders
        for split in ("train", "valid")
    }
    groups = {kind: len({d.group for d in tokens.of("valid", kind)}) for kind in folders}
    return tuple(folders), {"codec": made, "hours": hours, "validation_groups": groups, "tokens": asdict(settings)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing; write the figures after every run, so that they are of use at every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder with train and test")
    parser.add_argument("--music", type=Path, help="folder with train and test")
    parser.add_argument("--codec", type=Path, default=Path("weights/default"), help="a bundle or a codec run")
    parser.add_argument("--work", type=Path, default=Path("runs/table"))
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/table.json"))
    parser.add_argument("--speech-hours", type=float, default=3.0)
    parser.add_argument("--music-hours", type=float, default=1.25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="threads that decode audio")
    parser.add_argument("--only", action="append", default=[], help="a row; more than once for more; all by default")
    for name in ("steps", "seeds", "batch", "length"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Plan, name))
    arguments = parser.parse_args(argv)
    if arguments.speech is None and arguments.music is None:
        parser.error("name --speech, --music or both")
    if unknown := set(arguments.only) - {row.name for row in ROWS}:
        parser.error(f"no rows {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ROWS)}")
    torch.set_num_threads(arguments.threads)
    sizes = {name: getattr(arguments, name) for name in ("steps", "seeds", "batch", "length")}
    plan = Plan(**sizes, rows=ROWS)
    kinds, made_from = prepare(arguments)
    table = Table(arguments.work, plan, arguments.device, kinds)
    results = [table.unigram()]
    for result, sweeps in table.results(set(arguments.only)):
        results.append(result)
        conditions = machine() | {"device": arguments.device, "plan": asdict(replace(plan, rows=())), **made_from}
        write(arguments.out, results, sweeps, conditions)


if __name__ == "__main__":
    main()
