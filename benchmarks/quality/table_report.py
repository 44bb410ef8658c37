"""From the runs of `benchmarks/quality/table.py` to figures with intervals, and to the tables of docs/results/table.md.

Intervals are crossed bootstraps: each draw resamples utterances *and* seeds, and differences are of the same draw, so
that what is hard for both models cancels. They hold for other utterances and other seeds alike.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report.pages import Report, interval, table
from model.files import put_json

DRAWS = 10_000
FRAME_RATE_HZ = 75
PAPER = {"gpt-s": {"speech": 2.02}, "gpt-l": {"speech": 1.94}, "hybrid-4m": {"speech": 1.93, "music": 2.52}}  # nats
DIFFERENCES = (
    ("hybrid-4m", "gpt-s", "the paper's claim"),
    ("gpt-l", "gpt-s", "what ten times the parameters bring"),
    ("hybrid-4m", "gpt-l", "the paper's second claim: below 0, the small hybrid is the better one"),
    ("hybrid-4m, twice as long", "gpt-l, twice as long", "the same after twice as many tokens"),
    ("gpt-l, twice as long", "gpt-l", "what as many tokens again are worth to the large one"),
    ("hybrid-4m, shuffled mel", "gpt-s", "control: 0 when nothing but the mel's content helps"),
    ("hybrid-4m, shuffled mel", "hybrid-4m", "what the mel's content is worth"),
    ("hybrid-4m, leaky mel", "hybrid-4m", "negative control: how much a centred window flatters"),
    ("hybrid-4m, decoded mel", "hybrid-4m", "what hearing the codec instead of the clip costs"),
    ("hybrid-4m, decoded mel", "gpt-s", "the claim for what a closed loop can hear"),
    ("gpt-s", "unigram", "what context is worth"),
    ("hybrid-4m", "hybrid-4m, speech alone", "one model for both, or one each: below 0, one does better"),
    ("hybrid-4m", "hybrid-4m, music alone", "the same for music"),
)

Figure = dict[str, float]
Sums = npt.NDArray[np.float64]


def percentiles(values: Sums, mean: float) -> Figure:
    """A mean and the 95 % of the draws around it."""
    low, high = np.percentile(values, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high)}


class Bootstrap:
    """Draws of utterances and of seeds; the same for every row, so that rows can be compared draw by draw."""

    def __init__(self, frames: npt.ArrayLike, draws: int = DRAWS, seed: int = 0) -> None:
        self.frames = np.asarray(frames, dtype=np.float64)  # (U,): of each utterance
        count = len(self.frames)
        self.draws, self.seed = draws, seed
        self.counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)  # (R, U)
        self.weight = self.counts @ self.frames  # (R,): frames in each draw

    def values(self, sums: Sums) -> Sums:
        """Sums of each seed and utterance (S, U) -> the mean per frame in each draw (R,)."""
        seeds = len(sums)
        share = np.random.default_rng([self.seed, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), size=self.draws)
        drawn: Sums = ((share / seeds) @ sums * self.counts).sum(1) / self.weight
        return drawn

    def mean(self, sums: Sums) -> float:
        return float(sums.mean(0).sum() / self.frames.sum())

    def figure(self, sums: Sums) -> Figure:
        return percentiles(self.values(sums), self.mean(sums))

    def difference(self, one: Sums, other: Sums) -> Figure:
        """Of two rows, draw by draw: the same utterances, and with as many seeds the same seeds."""
        return percentiles(self.values(one) - self.values(other), self.mean(one) - self.mean(other))


def _row_figures(boot: Bootstrap, nll: Sums, correct: Sums) -> dict[str, Any]:
    figure = boot.figure(nll)
    return {
        "nll": figure,
        "accuracy": boot.figure(correct),
        "perplexity": {name: float(np.exp(value)) for name, value in figure.items()},
        "bits_per_second": {name: value / float(np.log(2)) * FRAME_RATE_HZ for name, value in figure.items()},
        "nll_per_seed": [round(boot.mean(one[None]), 4) for one in nll],
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all rows and of their differences, from the results of single runs."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["row"], []).append(result)
    out: dict[str, Any] = {"rows": {}, "differences": {}, "utterances": {}}
    for name, runs in rows.items():
        runs.sort(key=lambda run: run["seed"])
        known = {key: runs[0].get(key) for key in ("parameters", "tokens", "rate")}
        curves = [
            [[point["step"], point.get("valid_speech"), point.get("valid_music")] for point in run["curve"]]
            for run in runs
        ]
        out["rows"][name] = known | {
            "seeds": [run["seed"] for run in runs],
            "seconds": [run.get("seconds") for run in runs],
            "curves": curves,
        }
    for kind in ("speech", "music"):
        if kind not in results[0]["test"]:
            continue
        clips = [(found["clip"], found["frames"]) for found in results[0]["test"][kind]]
        boot = Bootstrap([frames for _, frames in clips])
        sums: dict[str, tuple[Sums, Sums]] = {}
        for name, runs in rows.items():
            if kind not in runs[0]["test"]:
                continue  # a row of the other kind alone
            assert all([(u["clip"], u["frames"]) for u in run["test"][kind]] == clips for run in runs), name
            sums[name] = (
                np.array([[u["nll"] for u in run["test"][kind]] for run in runs], dtype=np.float64),
                np.array([[u["correct"] for u in run["test"][kind]] for run in runs], dtype=np.float64),
            )
            out["rows"][name][kind] = _row_figures(boot, *sums[name])
        for one, other, _ in DIFFERENCES:
            if one in sums and other in sums:
                pair = out["differences"].setdefault(f"{one} - {other}", {})
                pair[kind] = {
                    "nll": boot.difference(sums[one][0], sums[other][0]),
                    "accuracy": boot.difference(sums[one][1], sums[other][1]),
                }
        out["utterances"][kind] = {
            "clips": [clip for clip, _ in clips],
            "frames": [frames for _, frames in clips],
            "nll_sums": {name: [[round(x, 3) for x in run] for run in nll.tolist()] for name, (nll, _) in sums.items()},
            "hits": {name: [[int(x) for x in run] for run in hits.tolist()] for name, (_, hits) in sums.items()},
        }
    return out


def write(out: Path, results: list[dict[str, Any]], sweeps: dict[str, Any], conditions: dict[str, Any]) -> None:
    """The figures so far, as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    body = {"conditions": conditions, "sweep": sweeps} | summary(results)
    put_json(out, body)


def _kind_table(kind: str, report: Report) -> list[str]:
    used = report["utterances"][kind]
    head = f"**{kind.capitalize()}**: {len(used['clips'])} utterances, {sum(used['frames']):,} tokens".replace(",", " ")
    heads = ("model", "parameters, M", "seeds", "NLL, nats a token", "perplexity", "accuracy", "bits/s", "paper, nats")
    rows = []
    for name, row in ((name, row) for name, row in report["rows"].items() if kind in row):
        figures, size = row[kind], row["parameters"] / 1e6
        cells = [name, f"{size:.2f}" if size >= 0.01 else "-", str(len(row["seeds"]))]
        cells += [interval(figures["nll"], 3), interval(figures["perplexity"], 1), interval(figures["accuracy"], 3)]
        cells += [interval(figures["bits_per_second"], 0), str(PAPER.get(name, {}).get(kind, "-"))]
        rows.append(cells)
    return [head, "", *table(heads, rows)]


def tables(report: Report) -> list[str]:
    """All tables of the page."""
    kinds = list(report["utterances"])
    lines = [line for kind in kinds for line in _kind_table(kind, report)]
    rows = []
    for one, other, reading in DIFFERENCES:
        pair = report["differences"].get(f"{one} - {other}")
        if pair:
            apart = [interval(pair[kind]["nll"], 3, "+") if kind in pair else "-" for kind in kinds]
            rows.append([f"({one}) - ({other})", *apart, reading])
    lines += table(["difference in NLL, nats", *kinds, "reading"], rows)
    rows = []
    for preset, tried in report["sweep"].items():
        best = min(tried, key=lambda rate: tried[rate])
        rows.append([preset, ", ".join(f"{rate}: {value:.3f}" for rate, value in tried.items()), best])
    lines += table(["preset", "learning rate: validation NLL of seed 0, mean of the kinds", "chosen"], rows)
    conditions = report["conditions"]
    plan, hours, codec = conditions["plan"], conditions["hours"], conditions["codec"]
    seen = plan["steps"] * plan["batch"] * plan["length"]
    taken = sum(second for row in report["rows"].values() for second in row["seconds"] if second) / 3600
    small = report["rows"].get("gpt-s", {}).get("seconds", [0])
    lines += [
        f"Every run saw {seen:,} tokens ({plan['steps']} steps), those of one kind alone their share of it, "
        "those that are twice as long as many again. "
        f"Hours of audio: {', '.join(f'{kind} {value}' for kind, value in hours.items())}. "
        f"Groups in validation: {', '.join(f'{kind} {n}' for kind, n in conditions['validation_groups'].items())}. "
        f"The runs took {taken:.1f} hours together ({np.median(small) / 60:.0f} minutes for a small one) on "
        f"{conditions['cuda'] if conditions['device'].startswith('cuda') else 'one core of a shared CPU'}, "
        f"torch {conditions['torch']}, bf16 autocast; scored in float32. "
        f"Codec: tokeniser `{codec['tokeniser_sha256'][:12]}`, decoder `{codec['decoder_sha256'][:12]}`.",
    ]
    return lines
