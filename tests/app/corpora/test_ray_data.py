"""A corpus over Ray Data, on a cluster of two nodes on this machine. `make test-ray` runs it."""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from app.cli.main import cli
from app.corpora.clips import Clip
from app.corpora.ray_workers import RayWorkers
from app.corpora.scoring import Job, Scorer
from app.corpora.sources import clips_of
from app.errors import UserError
from app.scores.schemas import ScoreForm
from benchmarks.speed.processes import descendants
from tests.support.clips import Deadly
from tests.support.on_ray import cluster
from tests.support.waiting import until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc: run it on Linux"),
    # Ray's own, and of what it leaves to the collector when it is shut down
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning",
                               "ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]  # fmt: skip
MANY = 1_000


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    pytest.importorskip("ray", reason="needs Ray: make test-ray")
    with cluster():
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Short ones, each other than the others; one that is no audio, and one that is not there."""
    folder = tmp_path_factory.mktemp("corpus") / "clips"
    folder.mkdir()
    rng = np.random.default_rng(11)
    for number in range(MANY - 2):
        soundfile.write(folder / f"{number:04d}.wav", rng.uniform(-0.1, 0.1, 4_800), 24_000)
    (folder / "bad.wav").write_text("words, and no audio")
    return [*clips_of([folder]), Clip("gone", "gone", folder / "gone.wav")]


@pytest.fixture(scope="module")
def job(saved_bundle: Path) -> Job:
    return Job(saved_bundle, "cpu", None, 1, ScoreForm(detail="tokens"))


@pytest.fixture(scope="module")
def expected(job: Job, clips: list[Clip]) -> dict[str, dict[str, Any]]:
    scorer: Scorer = job.load()
    return {clip.id: scorer.row(clip) for clip in clips}


def actors() -> list[int]:
    """Processes that score, by the name that Ray gives them while they do."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_thousand_clips_with_a_worker_killed(
    job: Job, clips: list[Clip], expected: dict[str, dict[str, Any]]
) -> None:
    """Each has one row, the same to the bit as here, the failed ones among them."""
    killed: list[int] = []
    seen: Counter[str] = Counter()
    for row in RayWorkers(job, 2).rows(clips):
        seen[row["id"]] += 1
        assert row == expected[row["id"]]
        if len(seen) == MANY // 3:
            until(lambda: actors(), pause=0.05)
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)
    assert seen == Counter(clip.id for clip in clips) and len(seen) == MANY
    assert killed, "in the middle"


def test_a_clip_that_ends_its_process_costs_no_other_its_score(
    job: Job, clips: list[Clip], expected: dict[str, dict[str, Any]]
) -> None:
    rows = {row["id"]: row for row in RayWorkers(job, 1).rows([*clips[:3], Deadly("deadly", "d.wav"), *clips[3:5]])}
    assert rows.pop("deadly")["error"]["code"] == "worker_lost"
    assert rows == {clip.id: expected[clip.id] for clip in clips[:5]}


def test_actors_that_cannot_start_are_told(tmp_path: Path, clips: list[Clip]) -> None:
    with pytest.raises(UserError, match="Ray could not go on"):
        list(RayWorkers(Job(tmp_path, "cpu", None, 1, ScoreForm()), 1).rows(clips[:2]))


def test_the_command_goes_on_over_ray_where_it_stopped_here(
    saved_bundle: Path, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of both kinds of run in one file, each id once; and the figures are those of a run here."""
    monkeypatch.setenv("WHISPERGPT_BUNDLE", str(saved_bundle))
    paths = [clip.path for clip in clips[:20]]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in paths))
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in paths[:5]))

    def run(corpus: str, out: str, *options: str) -> list[str]:
        command = ["score", str(tmp_path / corpus), "-o", str(tmp_path / out), *options]
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
        return sorted((tmp_path / out).read_text().splitlines())

    alone = run("all.jsonl", "alone.jsonl")
    run("some.jsonl", "both.jsonl")
    both = run("all.jsonl", "both.jsonl", "--ray", "--processes", "2", "--resume")
    assert both == alone and len(both) == 20
