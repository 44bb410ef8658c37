"""The tables of the decisions are those of the JSON files."""

from collections.abc import Callable

import pytest

from benchmarks.common import RESULTS, ROOT
from benchmarks.report.pages import Report, loaded
from benchmarks.report.runtime_tables import portable, runtimes


@pytest.mark.parametrize(
    ("name", "page", "lines"), [("runtimes", "0001-numba", runtimes), ("portable", "0002-one-cache", portable)]
)
def test_a_decision_shows_what_was_measured(name: str, page: str, lines: Callable[[Report], list[str]]) -> None:
    report = loaded(RESULTS, name)
    assert report is not None
    text = (ROOT / "docs" / "decisions" / f"{page}.md").read_text()
    made = lines(report)
    assert all(line in text for line in made) and sum(line.startswith("| ") for line in made) > 4
    for one in report["rows"].values():
        for figure in one["milliseconds_a_step"].values():
            figure["processor"]["median"] += 100
    assert lines(report) != made


def test_who_keeps_its_bits_is_told_apart() -> None:
    report = loaded(RESULTS, "runtimes")
    assert report is not None
    made = "\n".join(runtimes(report))
    for one in report["rows"].values():
        for way in one.get("first_row_as_of_1", ()):
            one["first_row_as_of_1"][way] = not one["first_row_as_of_1"][way]
    turned = "\n".join(runtimes(report))
    assert made.count("| yes") == turned.count("| no") > 0
