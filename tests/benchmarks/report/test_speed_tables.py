"""The tables of speed are those of the JSON files, whichever of them are there."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.common import RESULTS, ROOT
from benchmarks.report.pages import loaded
from benchmarks.report.speed_tables import PARTS, STEP_ROWS, speed


def changed(report: object) -> object:
    """Every number doubled."""
    if isinstance(report, float):
        return 2 * report
    if isinstance(report, dict):
        return {key: changed(one) for key, one in report.items()}
    return [changed(one) for one in report] if isinstance(report, list) else report


@pytest.mark.parametrize("name", [*PARTS, "step"])
def test_every_result_has_its_part_of_the_page(name: str, tmp_path: Path) -> None:
    report = loaded(RESULTS, name)
    if report is None:  # not measured yet: then the page says nothing of it
        assert all(PARTS) and speed(tmp_path) == []
        return
    shutil.copy(RESULTS / f"{name}.json", tmp_path)
    lines = speed(tmp_path)
    text = (ROOT / "docs" / "results" / "speed.md").read_text()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert len(rows) >= 2 and all(row in text for row in rows)
    assert all(line.count("|") == rows[0].count("|") for line in rows)
    (tmp_path / f"{name}.json").write_text(json.dumps(changed(report)))
    assert speed(tmp_path) != lines


def test_nothing_measured_is_nothing_said(tmp_path: Path) -> None:
    assert speed(tmp_path) == []


def test_the_step_table_holds_all_contenders() -> None:
    report = loaded(RESULTS, "step")
    if report is not None:
        for one in report["rows"].values():
            assert set(one["milliseconds_a_step"]) == set(STEP_ROWS)
