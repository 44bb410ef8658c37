"""Progress bars: how far, how fast, how long still, on one line of 80 columns; nothing where nobody looks."""

import io
import re

import pytest
from rich.console import Console

from app.cli import progress
from app.cli.progress import progress_bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=out, force_terminal=True, width=80))
    return out


def lines(out: io.StringIO) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())) if line]


@pytest.mark.parametrize(
    ("name", "rate", "state"),
    [
        ("continuing", "x real time", ""),
        ("requests", "a second", "13 under way, 2 failed"),
        ("a-long-name-of-a-clip-that-somebody-recorded.flac (3 of 12)", "x real time", ""),
    ],
    ids=["continue", "bench", "score"],
)
def test_a_line_tells_rate_and_time_left(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, name: str, rate: str, state: str
) -> None:
    now = 0.0
    with progress_bar(name, 40.0, rate) as bar:
        monkeypatch.setattr(bar._progress, "get_time", lambda: now)
        for step in range(1, 11):
            now = float(step)
            bar.update(2.0 * step, state)
        bar._progress.refresh()
    shown = lines(terminal)
    assert max(map(len, shown)) <= 80
    assert any(f"2 {rate}" in line and state in line and "left 0:00:10" in line for line in shown), shown


def test_nothing_is_printed_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=out))
    with progress_bar("continuing", 3.0, "x real time") as bar:
        bar.advance()
    assert out.getvalue() == ""
