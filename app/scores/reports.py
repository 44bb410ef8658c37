"""Forms of an answer to `score`: JSON, tables, label tracks, a picture. One registry, for the server and the commands.

All are written from plain results, the entries of the JSON answer's ``results``. The exact formats are documented in
docs/api.md, and held by tests/app/scores/test_reports.py.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from app.errors import InvalidParameter
from model.constants import FRAME_RATE_HZ

if TYPE_CHECKING:  # numpy and torch: not for those who only look at the formats
    from app.audio.picture import Sketch

Format = Literal["json", "jsonl", "csv", "audacity", "textgrid", "png", "zerospeech"]
Part = Literal["tokens", "full", "alternatives", "scan"]  # what a request may ask for, and a format have room for
Result = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """What there is to report. ``context_frames``: of each clip's start, not scored; ``sketch``: of the first clip."""

    model: str
    results: list[Result]
    context_frames: int = 0
    sketch: "Sketch | None" = None

    @property
    def good(self) -> list[Result]:
        """The clips that could be scored."""
        return [one for one in self.results if "error" not in one]


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def write_json(scored: Scored) -> str:
    return _dumped({"object": "audio.score", "model": scored.model, "results": scored.results})


def write_jsonl(scored: Scored) -> str:
    """A line a clip: the entry that it has in the JSON answer."""
    return "".join(_dumped(one) + "\n" for one in scored.results)


CLIP_COLUMNS = ("filename", "seconds", "tokens", "log_likelihood", "nll", "perplexity", "bits_per_second", "accuracy")
WINDOW_COLUMNS = {  # column: field of `window`
    "window_start": "start", "window_seconds": "seconds", "window_tokens": "tokens",
    "window_log_likelihood": "log_likelihood", "window_nll": "nll", "baseline_nll": "baseline_nll",
    "normalised_nll": "normalised_nll",
}  # fmt: skip
ERROR_COLUMNS = {"error_code": "code", "error_message": "message"}


def write_csv(scored: Scored) -> str:
    """RFC 4180: a header, and a row a clip. The columns are always the same, so that files can be joined."""
    out = io.StringIO()
    table = csv.writer(out)  # floats as Python writes them: read again they are the same numbers
    table.writerow([*CLIP_COLUMNS, *WINDOW_COLUMNS, *ERROR_COLUMNS])
    for one in scored.results:
        window, error = one.get("window", {}), one.get("error", {})
        table.writerow(
            [one.get(name, "") for name in CLIP_COLUMNS]
            + [window.get(field, "") for field in WINDOW_COLUMNS.values()]
            + [error.get(field, "") for field in ERROR_COLUMNS.values()]
        )
    return out.getvalue()


def clip_name(filename: str) -> str:
    """A clip as ZeroSpeech names it: without folder and suffix; blanks, which end a name there, become ``_``."""
    return "_".join(PurePosixPath(filename).stem.split())


def _pseudo_probability(one: Result) -> float:
    """What ZeroSpeech compares within a pair, higher for what is likelier: nats, a sum over tokens.

    Of the whole clip; of the window, if one was asked for, less its baseline, if that was.
    """
    window = one.get("window", {})
    if "normalised_nll" in window:
        return -float(window["normalised_nll"] * window["tokens"])
    return float(window.get("log_likelihood", one["log_likelihood"]))


def write_zerospeech(scored: Scored) -> str:
    """The submissions ``lexical/*.txt`` and ``syntactic/*.txt`` of ZeroSpeech 2021 and the sLM21 benchmark.

    A line a clip: its name, a blank, a number. There is no room for a clip that could not be scored: it is left out,
    and the benchmark's own validation misses it.
    """
    return "".join(f"{clip_name(one['filename'])} {_pseudo_probability(one)}\n" for one in scored.good)


class Label(NamedTuple):
    """A stretch of a clip, in seconds, and a text."""

    start: float
    stop: float
    text: str


def _token_labels(scored: Scored, texts: Sequence[str]) -> Iterator[Label]:
    """A label a token that is scored."""
    for frame, text in enumerate(texts, scored.context_frames):
        yield Label(frame / FRAME_RATE_HZ, (frame + 1) / FRAME_RATE_HZ, text)


def _scan_labels(scan: dict[str, Any]) -> Iterator[Label]:
    for index, nll in enumerate(scan["nll"]):
        start = scan["start"] + index * scan["step_seconds"]
        yield Label(start, start + scan["window_seconds"], f"{nll:.3f}")


def _window_label(window: dict[str, Any]) -> Label:
    return Label(window["start"], window["start"] + window["seconds"], f"{window['nll']:.3f}")


def write_audacity(scored: Scored) -> str:
    """A label track: start, end and text, with tabs between.

    The windows of a scan if one was asked for, with their ``nll``; else the window, if one was asked for; else every
    token with its log-probability.
    """
    (one,) = scored.good
    if "scan" in one:
        labels = _scan_labels(one["scan"])
    elif "window" in one:
        labels = iter([_window_label(one["window"])])
    else:
        labels = _token_labels(scored, [f"{value:.3f}" for value in one["logprobs"]])
    return "".join(f"{label.start:.6f}\t{label.stop:.6f}\t{label.text}\n" for label in labels)


def _interval_tier(name: str, labels: Sequence[Label], end: float) -> list[str]:
    """Lines of a tier. Its intervals have no gaps: what no label covers is an interval without text."""
    whole: list[Label] = []
    at = 0.0
    for label in labels:
        if label.start > at:
            whole.append(Label(at, label.start, ""))
        whole.append(label)
        at = label.stop
    if at < end:
        whole.append(Label(at, end, ""))
    lines = ['class = "IntervalTier"', f'name = "{name}"', "xmin = 0", f"xmax = {end}",
             f"intervals: size = {len(whole)}"]  # fmt: skip
    for number, label in enumerate(whole, 1):
        lines += [f"intervals [{number}]:", f"    xmin = {label.start}", f"    xmax = {label.stop}",
                  f'    text = "{label.text}"']  # fmt: skip
    return lines


def _point_tier(name: str, labels: Sequence[Label], end: float) -> list[str]:
    """Lines of a tier with a point at each label's middle: windows overlap, and Praat's intervals must not."""
    lines = ['class = "TextTier"', f'name = "{name}"', "xmin = 0", f"xmax = {end}", f"points: size = {len(labels)}"]
    for number, label in enumerate(labels, 1):
        lines += [f"points [{number}]:", f"    number = {(label.start + label.stop) / 2}", f'    mark = "{label.text}"']
    return lines


def write_textgrid(scored: Scored) -> str:
    """Praat's TextGrid, in its long text format: tiers of intervals, one a token, and of what else was asked for."""
    (one,) = scored.good
    end = (scored.context_frames + one["tokens"]) / FRAME_RATE_HZ
    texts = {"logprob": [f"{value:.3f}" for value in one["logprobs"]], "code": list(map(str, one["codes"]))}
    if "entropy" in one:
        texts |= {"entropy": [f"{value:.3f}" for value in one["entropy"]], "rank": list(map(str, one["rank"]))}
    tiers = [_interval_tier(name, list(_token_labels(scored, of_all)), end) for name, of_all in texts.items()]
    if "window" in one:
        tiers.append(_interval_tier("window nll", [_window_label(one["window"])], end))
    if "scan" in one:
        tiers.append(_point_tier("nll", list(_scan_labels(one["scan"])), end))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}",
             "tiers? <exists>", f"size = {len(tiers)}", "item []:"]  # fmt: skip
    for number, tier in enumerate(tiers, 1):
        lines += [f"    item [{number}]:", *(f"        {line}" for line in tier)]
    return "\n".join(lines) + "\n"


def can_draw() -> bool:
    """Whether matplotlib is there: an extra, which no other answer needs."""
    return find_spec("matplotlib") is not None


def write_png(scored: Scored) -> bytes:
    """A picture of the first clip: waveform, log-mel spectrogram and likelihood, with the windows of a scan."""
    import numpy as np

    from app.audio.picture import Strip, Windows, picture

    one = scored.good[0]
    assert scored.sketch is not None
    labels, nlls = [], []
    if "scan" in one:
        labels, nlls = list(_scan_labels(one["scan"])), one["scan"]["nll"]
    elif "window" in one:
        labels, nlls = [_window_label(one["window"])], [one["window"]["nll"]]
    middles = np.array([(label.start + label.stop) / 2 for label in labels])
    windows = Windows(middles, -np.array(nlls)) if labels else None
    strip = Strip(scored.model, np.array(one["logprobs"]), scored.context_frames / FRAME_RATE_HZ)
    return picture(one["filename"], scored.sketch, [strip], windows)


@dataclass(frozen=True)
class Report:
    """A format. ``takes``: what a request may ask for with it; ``positions``: it is made of every token's figures;
    ``picture``: it is drawn, of the first clip.
    """

    media_type: str
    suffix: str
    write: Callable[[Scored], str | bytes]
    takes: frozenset[Part] = frozenset()
    positions: bool = False
    one_clip: bool = False
    picture: bool = False

    def content(self, scored: Scored) -> bytes:
        made = self.write(scored)
        return made if isinstance(made, bytes) else made.encode()


ALL: frozenset[Part] = frozenset({"tokens", "full", "alternatives", "scan"})
TEXT = "text/plain; charset=utf-8"
REPORTS: dict[Format, Report] = {
    "json": Report("application/json", ".json", write_json, ALL),
    "jsonl": Report("application/x-ndjson", ".jsonl", write_jsonl, ALL),
    "csv": Report("text/csv; charset=utf-8", ".csv", write_csv),
    "audacity": Report(TEXT, ".txt", write_audacity, frozenset({"tokens", "scan"}), positions=True, one_clip=True),
    "textgrid": Report(
        TEXT, ".TextGrid", write_textgrid, frozenset({"tokens", "full", "scan"}), positions=True, one_clip=True
    ),
    "png": Report("image/png", ".png", write_png, frozenset({"tokens", "scan"}), positions=True, picture=True),
    "zerospeech": Report(TEXT, ".zerospeech.txt", write_zerospeech),
}


def check_clips(name: Format, clips: int) -> None:
    """Raises InvalidParameter when the format cannot be written: of so many clips, or without what draws it."""
    if REPORTS[name].picture and not can_draw():
        message = f"response_format: {name} needs matplotlib at the server: pip install matplotlib"
        raise InvalidParameter(message, "response_format")
    if REPORTS[name].one_clip and clips > 1:
        raise InvalidParameter(
            f"response_format: {name} is of one clip, and these are {clips}: ask for each, or for jsonl or csv",
            "response_format",
        )
