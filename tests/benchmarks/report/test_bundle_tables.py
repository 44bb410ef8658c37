"""The model card's tables: what `whisper-gpt eval` wrote is what they show, and what it did not measure is left out."""

from typing import Any

from benchmarks.report.bundle_tables import continuations, drift, judges

INTERVAL = {"mean": 2.5, "low": 2.0, "high": 3.0}


def test_judges_are_shown_by_row_and_left_out_without_the_extra() -> None:
    marks = dict.fromkeys(("mos", "mos_signal", "mos_p808"), INTERVAL)
    report: dict[str, Any] = {"judges": {"real": marks, "codebooks_8": marks | {"word_errors": INTERVAL}, "clips": 16}}
    lines = judges(report)
    assert lines[0].startswith("| 16 clips | DNSMOS, overall |")
    assert lines[2].startswith("| real | 2.50 (2.00 to 3.00) |") and lines[2].endswith("| - |")
    assert lines[3].startswith("| codebooks 8 |") and lines[3].endswith("| 2.50 (2.00 to 3.00) |")
    assert judges({}) == judges({"judges": {}}) == []


def test_drift_is_a_row_for_each_stretch() -> None:
    stretch = {"level_db": -1.0, "silent": 0.25, "nll": 2.0, "in_tune": 0.9, "chroma": 0.8}
    stretches = [{"from_seconds": first} | stretch for first in (0.0, 5.0)]
    lines = drift(stretches, music=True)
    assert lines[2:4] == [f"| {span} | -1.00 | 0.25 | 2.00 | 0.90 | 0.80 |" for span in ("0 to 5", "5 to 10")]
    assert drift(stretches, music=False)[2] == "| 0 to 5 | -1.00 | 0.25 | 2.00 |"
    assert drift([], music=True) == []


def test_continuations_without_what_a_report_of_before_did_not_have() -> None:
    figures = {"level_db": 1.0, "silent": 0.1, "longest_silence": 0.5, "in_tune": 0.9}
    lines = continuations({"continuations": {"real": figures, "clips": 2}}, music=True)
    assert lines[2] == "| real | +1.0 | 0.10 | 0.5 | - | 0.90 | - |"
