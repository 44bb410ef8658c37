"""A run's log goes to a tracker once, in any number of pieces; and to the real package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.training.corpus import DataError
from model.training.tracking import finished, send


class Kept:
    """A tracker in memory. ``fails`` at the entry of that step."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.begun: list[dict[str, Any]] = []
        self.entries: list[tuple[int | None, dict[str, Any]]] = []
        self.open = False

    def init(self, **settings: Any) -> None:
        assert not self.open
        self.open = True
        self.begun.append(settings)

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert self.open
        if step == self.fails:
            raise OSError("no room")
        self.entries.append((step, metrics))

    def finish(self) -> None:
        self.open = False


def write(run: Path, *steps: int, loss: float = 1.0) -> None:
    run.mkdir(exist_ok=True)
    settings = {"settings": {"training": {"steps": 4, "rate": 0.1}, "config": {"dim": 8}}, "machine": {"cores": 2}}
    (run / "settings.json").write_text(json.dumps(settings))
    with (run / "log.jsonl").open("a") as out:
        for step in steps:
            out.write(json.dumps({"step": step, "seconds": step, "loss": loss / step}) + "\n")


def test_a_run_has_its_last_step_behind_those_that_teach_its_reader(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for decoder, steps in (("frame", 4), ("harmonic", 6)):
        write(run, 1)
        training = {"steps": 4, "reader_steps": 2}
        settings = {"settings": {"training": training, "config": {"decoder": decoder}}, "machine": {}}
        (run / "settings.json").write_text(json.dumps(settings))
        for step in range(2, steps):
            with (run / "log.jsonl").open("a") as out:
                out.write(json.dumps({"step": step}) + "\n")
            assert not finished(run), (decoder, step)
        with (run / "log.jsonl").open("a") as out:
            out.write(json.dumps({"step": steps}) + "\n")
        assert finished(run), decoder
        (run / "log.jsonl").unlink()


def test_each_entry_is_sent_once(tmp_path: Path) -> None:
    """Also when the training was cut off and logged some steps again, and with a line that a kill left unfinished."""
    run, tracker = tmp_path / "run", Kept()
    write(run, 1, 2)
    assert send(run, tracker, "p", "n") == 2
    assert tracker.begun[0]["config"] == {
        "training.steps": 4,
        "training.rate": 0.1,
        "config.dim": 8,
        "machine.cores": 2,
    }
    assert send(run, tracker, "p", "n") == 0 and len(tracker.begun) == 1
    with (run / "log.jsonl").open("a") as out:
        out.write('{"step": 3, "lo')
        out.write("\n")
    write(run, 2, 3)
    assert not finished(run)
    assert send(run, tracker, "p", "n") == 1
    write(run, 4)
    assert finished(run) and send(run, tracker, "p", "n") == 1
    assert tracker.entries == [(step, {"seconds": step, "loss": 1 / step}) for step in (1, 2, 3, 4)]
    assert {begun["resume"] for begun in tracker.begun} == {"allow"} and not tracker.open
    assert send(run, tracker, "other", "n") == 4, "another project has none of it"


def test_what_failed_is_sent_the_next_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 1, 2, 3)
    failing = Kept(fails=2)
    with pytest.raises(OSError, match="no room"):
        send(run, failing, "p", "n")
    assert not failing.open
    assert send(run, Kept(), "p", "n") == 3


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training run"):
        send(tmp_path, Kept(), "p", "n")


@pytest.mark.slow
def test_trackio_has_the_figures(tmp_path: Path) -> None:
    """The command with the real package, in two pieces, and its own reader."""
    pytest.importorskip("trackio", reason='pip install -e ".[tracker]"')
    run, root = tmp_path / "run", Path(__file__).parents[3]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "PYTHONPATH": str(root)}

    def said(*arguments: str) -> str:
        made = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path
        )
        assert made.returncode == 0, made.stderr
        return made.stdout

    track = ("-m", "app.cli", "train", "track", str(run), "--project", "voices", "--name", "mine")
    write(run, 1, 2)
    assert "2 entries sent to voices/mine" in said(*track)
    write(run, 3, 4)
    assert "2 entries sent" in said(*track, "--follow"), "and it ends with the run"
    reader = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps([S.get_runs('voices'), S.get_logs('voices', 'mine')]))"
    )
    runs, logs = json.loads(said("-c", reader).splitlines()[-1])
    assert runs == ["mine"]
    assert [(entry["step"], entry["loss"]) for entry in logs] == [(step, 1 / step) for step in (1, 2, 3, 4)]
