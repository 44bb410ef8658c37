"""The pages hold what the scripts measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import RESULTS, ROOT
from benchmarks.report.pages import Page, interval, marker, of, table
from benchmarks.report.tables import PAGES

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)


def test_pages_are_made_of_the_results() -> None:
    command = [sys.executable, "-m", "benchmarks.report.tables", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@by_name
def test_every_result_has_its_place(page: Page) -> None:
    text = page.path.read_text()
    for name, part in page.parts.items():
        begin, end = marker(name, "begin"), marker(name, "end")
        assert text.count(begin) == text.count(end), name
        if part(RESULTS):
            assert text.count(begin) == 1, name
        else:  # a place that waits for its script holds no figures
            assert text.count(begin) == text.count(f"{begin}\n{end}") <= 1, name


@by_name
def test_what_stands_between_markers_is_made_anew(page: Page) -> None:
    text = page.path.read_text()
    for name, part in page.parts.items():
        if part(RESULTS):
            begin = f"{marker(name, 'begin')}\n"
            assert page.made(text.replace(begin, f"{begin}| typed by hand |\n"), RESULTS) == text


def test_a_changed_result_changes_the_page(tmp_path: Path) -> None:
    text = "before\n<!-- one:begin -->\nold\n<!-- one:end -->\nafter\n"
    page = Page(tmp_path / "page.md", {"one": of("one", lambda report: [str(report["value"]), ""])})
    assert page.made(text, tmp_path) == text  # nothing measured: it stays
    (tmp_path / "one.json").write_text(json.dumps({"value": 3}))
    assert page.made(text, tmp_path) == text.replace("old", "3")


def test_cells() -> None:
    assert interval({"mean": 0.456, "low": 0.4, "high": 0.512}) == "0.46 (0.40 to 0.51)"
    assert interval({"mean": 0.456, "low": -0.4, "high": 0.512}, 1, "+") == "+0.5 (-0.4 to +0.5)"
    assert interval(None) == "-"
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |", ""]
