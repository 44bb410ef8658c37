"""`whisper-gpt score` of a corpus: rows as they come, how far it is, and what came of it."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli.config import settings_from
from app.cli.interrupt import Stopped
from app.cli.options import errors, pick_device
from app.cli.output import check_folder, check_output
from app.cli.progress import Bar, progress_bar
from app.corpora.clips import Clip
from app.corpora.ray_workers import RayWorkers
from app.corpora.rows import Format, Rows, check_format, rows_in, rows_to
from app.corpora.scoring import Job
from app.corpora.sources import clips_of, count_of, places
from app.corpora.workers import Row, Workers, rows_here
from app.errors import UserError
from app.models.catalog import folders
from app.scores.schemas import ScoreForm
from model.checkpoint import read_config
from model.inference.scoring import MelSource

LOG_SECONDS = 60.0  # between two lines in a log, where a bar is of no use


@dataclass(frozen=True)
class Place:
    """Where the rows go: a file of a format, standard output, or nowhere but a table (``name`` is None)."""

    name: Format | None
    out: Path | None
    resume: bool

    def check(self) -> None:
        """Raises UserError."""
        if self.name is not None:
            check_format(self.name)
        if self.out is not None:
            (check_folder if self.name == "parquet" else check_output)(self.out)

    def rows(self, made_with: dict[str, Any]) -> AbstractContextManager[Rows]:
        if self.name is None:
            return closing(TableRows())
        if self.out is None:
            return rows_to(self.name, sys.stdout.buffer)
        return rows_in(self.name, self.out, self.resume, made_with)


class TableRows:
    """Rows to be shown when all are there."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.failed = 0
        self.all: list[Row] = []

    def write(self, row: Row) -> None:
        self.all.append(row)

    def close(self) -> None:
        pass


@dataclass
class Tally:
    """What came of the clips so far."""

    left: int | None
    begin: float
    clips: int = 0
    failed: int = 0
    twice: int = 0
    audio_seconds: float = 0.0

    def add(self, row: Row) -> None:
        self.clips += 1
        self.failed += "error" in row
        self.audio_seconds += row.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.begin, 1e-9)

    def state(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.audio_seconds / self.seconds:.0f} x real time{failed}"

    def line(self) -> str:
        """For a log."""
        rate = self.clips / self.seconds
        of_all = f" of {self.left}" if self.left is not None else ""
        told = f"{self.clips}{of_all} clips, {rate:.3g} a second, {self.state()}"
        if self.left is None or not rate:
            return told
        return f"{told}, {max(self.left - self.clips, 0) / rate:.0f} s left"


def _fresh(clips: Iterable[Clip], done: set[str], tally: Tally) -> Iterator[Clip]:
    """Each clip once, without those that have their row already."""
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            tally.twice += 1
            if tally.twice == 1:
                errors.print(f"{clip.id} comes twice; it is scored once", style="yellow", markup=False, soft_wrap=True)
            continue
        seen.add(clip.id)
        if clip.id not in done:
            yield clip


def _written(rows: Iterable[Row], out: Rows, tally: Tally, bar: Bar) -> None:
    told = tally.begin
    for row in rows:
        out.write(row)
        tally.add(row)
        bar.update(tally.clips, tally.state())
        now = time.monotonic()
        if not errors.is_terminal and now - told >= LOG_SECONDS:
            errors.print(tally.line(), markup=False, highlight=False, soft_wrap=True)
            told = now


def score_corpus(
    paths: list[Path], form: ScoreForm, mel: MelSource, place: Place,
    bundle: Path | None, device: str | None, threads: int | None, processes: int | None, ray: bool = False,
) -> tuple[list[Row], bool]:  # fmt: skip
    """Scores all clips that the paths name, and writes a row of each.

    Returns the rows of a table, if that is wanted, and whether every clip has a score, those of an earlier run that
    was gone on with among them. Raises UserError, and Stopped for Ctrl-C.
    """
    place.check()
    settings = settings_from(bundle=bundle, device=device, threads=threads)
    job = Job(folders(settings.bundle)[0], pick_device(settings.device), settings.codec, threads or 1, form, mel)
    config = read_config(job.bundle)
    options = form.model_dump(exclude_defaults=True)
    made_with = {
        "model": config["name"], "codec": config["codec_sha256"], "decoder": config.get("decoder_sha256"),
        "options": options, "mel": mel,
    }  # fmt: skip
    found = list(places(paths))
    with errors.status("looking for clips"):
        count = count_of(found)
    nothing = UserError(f"{', '.join(map(str, paths))}: there are no clips to score")
    if count == 0:
        raise nothing  # before a file is written, which would be in the way of the next try
    with place.rows(made_with) as out:
        tally = Tally(None if count is None else max(count - len(out.done), 0), time.monotonic())
        before = len(out.done)
        if before:
            errors.print(f"{before} clips have their row already", highlight=False)
        clips = _fresh(clips_of(found), out.done, tally)
        try:
            if ray:
                rows = RayWorkers(job, processes).rows(clips)
            elif (processes or 1) > 1:
                rows = Workers(job, processes or 1).rows(clips)
            else:
                rows = rows_here(_loaded(job), clips)
                tally.begin = time.monotonic()
            with progress_bar("scoring", tally.left, "clips a second") as bar:
                _written(rows, out, tally, bar)
        except KeyboardInterrupt:
            going_on = "--resume goes on" if place.out is not None else "nothing is kept of what was not written"
            raise Stopped(f"stopped after {before + tally.clips} clips; {going_on}") from None
        failed = out.failed + tally.failed
    if not before and not tally.clips:
        raise nothing
    good = tally.clips - tally.failed
    told = f"{good} clips scored, {tally.failed} failed"
    if before:
        told += f"; {before} were there, {out.failed} of them failed"
    if tally.twice:
        told += f"; {tally.twice} came twice"
    speed = f"{tally.audio_seconds:.0f} s of audio in {tally.seconds:.1f} s, {tally.state().partition(',')[0]}"
    errors.print(f"{told}; {speed}", highlight=False, markup=False, soft_wrap=True)
    shown = [replace_name(row) for row in out.all] if isinstance(out, TableRows) else []
    return shown, not failed and not tally.twice


def replace_name(row: Row) -> Row:
    """The row as a table shows it: file names come again in other folders."""
    return {**row, "filename": row["id"]}


def _loaded(job: Job) -> Any:
    import torch

    torch.set_num_threads(job.threads)
    with errors.status("loading the weights"):
        return job.load()
