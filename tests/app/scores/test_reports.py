"""The forms of a score: exact, byte for byte, and read back by readers that are not ours."""

import csv
import io
import itertools
import json
import re
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from app.audio.picture import Sketch
from app.errors import InvalidParameter
from app.scores.reports import REPORTS, Format, Scored, check_clips

TOKENS = {
    "filename": 'a "b", c.flac', "seconds": 0.04, "tokens": 3, "log_likelihood": -6.75, "nll": 2.25,
    "perplexity": 9.487735836358526, "bits_per_second": 243.44, "accuracy": 0.1, "logprobs": [-3.0, -0.25, -3.5],
    "codes": [17, 940, 3],
}  # fmt: skip
FAILED = {"filename": "b.txt", "error": {"message": "not audio", "code": "unsupported_format", "param": "file"}}
SCAN = {"start": 0.0, "window_seconds": 2 / 75, "step_seconds": 1 / 75, "nll": [1.625, 1.875]}
WINDOW = {"start": 0.0, "seconds": 2 / 75, "tokens": 2, "log_likelihood": -3.25, "nll": 1.625, "perplexity": 5.078}


def written(name: Format, *results: dict[str, Any], context: int = 0) -> str:
    return REPORTS[name].content(Scored("default", list(results), context)).decode()


def test_every_format_is_registered() -> None:
    assert list(REPORTS) == list(get_args(Format))
    suffixes = [report.suffix.lower() for report in REPORTS.values()]
    assert len(set(suffixes)) == len(suffixes)


@pytest.mark.parametrize("more", [{}, {"scan": SCAN}, {"window": WINDOW}], ids=str)
def test_png(more: dict[str, Any]) -> None:
    sketch = Sketch.of(np.zeros(78 * 320, dtype=np.float32))
    content = REPORTS["png"].content(Scored("default", [{**TOKENS, **more}], 75, sketch))
    assert Image.open(io.BytesIO(content)).size == (1200, 660)


def test_json_lines() -> None:
    lines = written("jsonl", TOKENS, FAILED).splitlines()
    assert [json.loads(line) for line in lines] == [TOKENS, FAILED]
    assert json.loads(written("json", TOKENS, FAILED))["results"] == [TOKENS, FAILED]


def test_csv() -> None:
    assert written("csv", {**TOKENS, "window": WINDOW}, FAILED) == (
        "filename,seconds,tokens,log_likelihood,nll,perplexity,bits_per_second,accuracy,window_start,window_seconds,"
        "window_tokens,window_log_likelihood,window_nll,baseline_nll,normalised_nll,error_code,error_message\r\n"
        '"a ""b"", c.flac",0.04,3,-6.75,2.25,9.487735836358526,243.44,0.1,0.0,0.02666666666666667,2,-3.25,1.625,,,,\r\n'
        "b.txt,,,,,,,,,,,,,,,unsupported_format,not audio\r\n"
    )
    first, second = csv.DictReader(io.StringIO(written("csv", TOKENS, FAILED), newline=""))
    assert (first["filename"], float(first["perplexity"])) == (TOKENS["filename"], TOKENS["perplexity"])
    assert second["error_message"] == "not audio"


def test_zerospeech() -> None:
    """A line is a name and a number with one blank between, for the challenge's own reader (``line.split(" ")``)."""
    assert written("zerospeech", {**TOKENS, "filename": "lexical/dev/aAAfmkmQpVz.wav"}, FAILED) == "aAAfmkmQpVz -6.75\n"
    assert written("zerospeech", TOKENS) == 'a_"b",_c -6.75\n'
    assert written("zerospeech", {**TOKENS, "filename": "a.wav", "window": WINDOW}) == "a -3.25\n"
    normalised = {**WINDOW, "normalised_nll": -0.5}
    assert written("zerospeech", {**TOKENS, "filename": "a.wav", "window": normalised}) == "a 1.0\n", "the past helped"


def test_audacity() -> None:
    assert written("audacity", TOKENS, context=75) == (
        "1.000000\t1.013333\t-3.000\n1.013333\t1.026667\t-0.250\n1.026667\t1.040000\t-3.500\n"
    )
    assert written("audacity", {**TOKENS, "scan": SCAN}) == ("0.000000\t0.026667\t1.625\n0.013333\t0.040000\t1.875\n")
    assert written("audacity", {**TOKENS, "window": WINDOW}) == "0.000000\t0.026667\t1.625\n"


def test_textgrid() -> None:
    """Both tiers have the same intervals, as Praat wants them: written out, since this is what a file looks like."""
    one = {**TOKENS, "tokens": 1, "logprobs": [-3.0], "codes": [17]}
    assert (
        written("textgrid", one, context=3)
        == """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.05333333333333334
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "logprob"
        xmin = 0
        xmax = 0.05333333333333334
        intervals: size = 2
        intervals [1]:
            xmin = 0.0
            xmax = 0.04
            text = ""
        intervals [2]:
            xmin = 0.04
            xmax = 0.05333333333333334
            text = "-3.000"
    item [2]:
        class = "IntervalTier"
        name = "code"
        xmin = 0
        xmax = 0.05333333333333334
        intervals: size = 2
        intervals [1]:
            xmin = 0.0
            xmax = 0.04
            text = ""
        intervals [2]:
            xmin = 0.04
            xmax = 0.05333333333333334
            text = "17"
"""
    )


def test_tiers_of_a_textgrid_have_no_gaps() -> None:
    """Praat refuses others. Points tell of windows, which overlap."""
    one = {**TOKENS, "entropy": [5.0, 4.0, 3.0], "rank": [9, 1, 20], "window": WINDOW, "scan": SCAN}
    text = written("textgrid", one)
    tiers = text.split("    item [")[1:]
    assert [re.findall(r'name = "(.*)"', tier) for tier in tiers] == [
        ["logprob"], ["code"], ["entropy"], ["rank"], ["window nll"], ["nll"],
    ]  # fmt: skip
    for tier in tiers[:-1]:
        edges = [(float(low), float(high)) for low, high in re.findall(r"xmin = (\S+)\s+xmax = (\S+)", tier)]
        (low, high), *parts = edges
        assert parts[0][0] == low == 0 and parts[-1][1] == high == 0.04
        assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
        assert f"intervals: size = {len(parts)}" in tier
    assert re.findall(r"number = (\S+)\s+mark = \"(\S+)\"", tiers[-1]) == [
        (str(1 / 75), "1.625"), (str((1 / 75 + 1 / 75 + 2 / 75) / 2), "1.875"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["audacity", "textgrid"])
def test_label_tracks_are_of_one_clip(name: Format) -> None:
    check_clips(name, 1)
    with pytest.raises(InvalidParameter, match=f"{name} is of one clip, and these are 2"):
        check_clips(name, 2)
    check_clips("csv", 2)
