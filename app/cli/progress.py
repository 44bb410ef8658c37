"""Progress on standard error: how far, how fast, how long still. Gone when the work is done."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip
from rich.table import Column

from app.cli.options import errors
from model.training.progress import RateColumn


class Bar:
    """Where work tells how far it is."""

    def __init__(self, progress: Progress, description: str, total: float | None, rate: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, rate=rate, state="")

    def advance(self, amount: float = 1.0) -> None:
        self._progress.advance(self._task, amount)

    def update(self, completed: float, state: str = "") -> None:
        """So far it is, and a few words on how it goes."""
        self._progress.update(self._task, completed=completed, state=state)


@contextmanager
def progress_bar(description: str, total: float | None, rate: str) -> Iterator[Bar]:
    """A bar of ``total`` units; ``rate`` names what the units a second are, as in `x real time` for seconds."""
    name = Column(no_wrap=True, overflow="ellipsis", max_width=24)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=name), BarColumn(bar_width=None),
        RateColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    # off where nobody looks: else rich ends with an empty line there
    with Progress(*columns, console=errors, transient=True, expand=True, disable=not errors.is_terminal) as progress:
        yield Bar(progress, description, total, rate)
