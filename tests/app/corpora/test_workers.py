"""Several processes score what one would, and lose nothing when one of them is lost."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from app.corpora.clips import Clip
from app.corpora.scoring import Job, Scorer
from app.corpora.sources import clips_of
from app.corpora.workers import TRIES, Workers
from app.errors import UserError
from app.scores.schemas import ScoreForm
from model.checkpoint import random_bundle, save_bundle
from tests.support.clips import Deadly

CLIPS = 6


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(random_bundle(), folder)
    return Job(folder, "cpu", None, 1, ScoreForm(detail="tokens"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(3)
    for number in range(CLIPS):
        soundfile.write(folder / f"{number}.wav", rng.uniform(-0.1, 0.1, 4_800 + 320 * number), 24_000)
    (folder / "bad.wav").write_text("words, and no audio")
    return [*clips_of([folder]), Clip("gone", "gone", folder / "gone.wav"), Clip("m:3", "m:3", fault="names no file")]


def by_id(rows: Any) -> dict[str, dict[str, Any]]:
    listed = list(rows)
    found = {row["id"]: row for row in listed}
    assert len(found) == len(listed), "each once"
    return found


def test_rows_of_good_and_bad_clips(job: Job, clips: list[Clip]) -> None:
    scorer = job.load()
    rows = by_id(map(scorer.row, clips))
    good = [row for row in rows.values() if "error" not in row]
    assert [row["tokens"] for row in good] == [15 + number for number in range(CLIPS)]
    assert all(len(row["logprobs"]) == row["tokens"] for row in good)
    codes = {row["filename"]: row["error"]["code"] for row in rows.values() if "error" in row}
    assert codes == {"bad.wav": "unsupported_format", "gone": "file_unreadable", "m:3": "invalid_manifest"}


def test_a_part_of_a_file_is_scored_as_a_file_of_that_part(job: Job, clips: list[Clip], tmp_path: Path) -> None:
    whole = next(clip for clip in clips if clip.filename == "5.wav")
    samples, rate = soundfile.read(whole.path)
    soundfile.write(tmp_path / "part.wav", samples[1_200:4_800], rate)
    scorer = job.load()
    part = scorer.row(Clip("part", "5.wav", whole.path, start_seconds=0.05, end_seconds=0.2))
    same = scorer.row(Clip("part", "5.wav", tmp_path / "part.wav"))
    assert part == same and part["tokens"] == 11


def test_an_unforeseen_error_stays_in_its_row(job: Job, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **more: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("app.corpora.scoring.score", broken)
    assert job.load().row(clips[0])["error"] == {"code": "internal_error", "message": "ZeroDivisionError: by nought"}


def test_a_likelihood_that_is_no_number_is_an_error(job: Job, clips: list[Clip]) -> None:
    scorer = job.load()
    scorer.bundle.lm.head.weight.fill_(float("nan"))
    assert scorer.row(clips[0])["error"]["message"] == "a likelihood is not finite"


def test_processes_score_what_one_does_and_a_lost_one_is_replaced(job: Job, clips: list[Clip]) -> None:
    expected = by_id(map(Scorer(job.load().bundle, job.form, job.mel).row, clips))
    workers = Workers(job, 2)
    killed: list[int] = []

    def fed() -> Iterator[Clip]:
        for number, clip in enumerate(clips):
            if number == 3:
                killed.append(workers.pids[0])
                os.kill(workers.pids[0], signal.SIGKILL)
            yield clip

    assert by_id(workers.rows(fed())) == expected
    assert killed and killed[0] not in workers.pids


def test_a_clip_that_ends_its_process_each_time_is_told(job: Job, clips: list[Clip]) -> None:
    rows = by_id(Workers(job, 1).rows([Deadly("deadly", "deadly.wav"), clips[0]]))
    error = rows["deadly"]["error"]
    assert error["code"] == "worker_lost" and f"{TRIES} times, at last with signal 9" in error["message"]
    assert rows[clips[0].id]["tokens"] == 15, "the clip behind it is scored"


def test_processes_that_cannot_start_are_told(tmp_path: Path, clips: list[Clip]) -> None:
    job = Job(tmp_path, "cpu", None, 1, ScoreForm())
    with pytest.raises(UserError, match="ended at its start"):
        list(Workers(job, 1).rows(clips))
