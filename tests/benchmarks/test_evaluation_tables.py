"""docs/evaluation.md holds what the scripts measured."""

import subprocess
import sys

from benchmarks.common import RESULTS, ROOT
from benchmarks.evaluation_tables import PAGE, PARTS, interval, rewritten, table


def test_tables_are_made_of_the_results() -> None:
    command = [sys.executable, "-m", "benchmarks.evaluation_tables", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_result_has_its_place_in_the_page() -> None:
    text = PAGE.read_text()
    for name in PARTS:
        assert (f"<!-- {name}:begin -->" in text) == (RESULTS / f"{name}.json").exists(), name


def test_a_changed_figure_is_seen() -> None:
    text = PAGE.read_text()
    changed = text.replace("| all | 0.", "| all | 9.", 1)
    assert changed != text
    assert rewritten(changed) == text


def test_cells() -> None:
    assert interval({"mean": 0.456, "low": 0.4, "high": 0.512}) == "0.46 (0.40 to 0.51)"
    assert interval({"mean": 0.456, "low": -0.4, "high": 0.512}, 1, "+") == "+0.5 (-0.4 to +0.5)"
    assert interval(None) == "-"
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |", ""]
