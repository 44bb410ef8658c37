"""`whisper-gpt score` of a corpus: rows as they come, gone on with after a kill, an exit code that tells."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from app.cli.main import cli
from model.checkpoint import random_bundle, save_bundle

ROOT = Path(__file__).parents[3]
MANY = 1_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(random_bundle(), folder)
    return folder


@pytest.fixture(autouse=True)
def environment(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPERGPT_BUNDLE", str(bundle))
    monkeypatch.setenv("COLUMNS", "160")


def make_clips(folder: Path, count: int) -> Path:
    """Clips of a fifth of a second, each other than the others."""
    folder.mkdir()
    rng = np.random.default_rng(11)
    for number in range(count):
        soundfile.write(folder / f"{number:04d}.wav", rng.uniform(-0.1, 0.1, 4_800), 24_000)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def told(result: Result) -> str:
    return " ".join(result.stderr.split())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_gone_on_with(tmp_path: Path) -> None:
    """A folder that grew, with a clip that cannot be scored: what was there stays as it was."""
    folder, out = make_clips(tmp_path / "clips", 4), tmp_path / "scores.jsonl"
    first = run("score", folder, "-o", out)
    assert first.exit_code == 0, first.output
    assert "4 clips scored, 0 failed; 1 s of audio" in told(first)
    before = out.read_bytes()
    (folder / "9.wav").write_text("words, and no audio")
    again = run("score", folder, "-o", out)
    assert again.exit_code == 1 and "exists: --resume goes on with it" in again.stderr
    more = run("score", folder, "-o", out, "--resume")
    assert more.exit_code == 1, "a clip could not be scored"
    assert "0 clips scored, 1 failed; 4 were there, 0 of them failed" in told(more)
    assert out.read_bytes().startswith(before)
    assert lines(out)[4]["error"]["code"] == "unsupported_format"
    last = run("score", folder, "-o", out, "--resume")
    assert last.exit_code == 1 and "5 were there, 1 of them failed" in told(last), "the file still holds an error"
    other = run("score", folder, "-o", out, "--resume", "--detail", "tokens")
    assert other.exit_code == 1 and "cannot be gone on with: options" in told(other)


def test_a_corpus_has_the_scores_of_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_clips(tmp_path / "clips", 3)
    paths = sorted(folder.iterdir())
    expected = json.loads(run("score", *paths, "--json", "--detail", "tokens").stdout)["results"]
    made = run("score", folder, "--response-format", "jsonl", "--detail", "tokens")
    assert made.exit_code == 0, made.output
    rows = [json.loads(line) for line in made.stdout.splitlines()]
    assert [row.pop("id") for row in rows] == [str(path) for path in paths]
    assert rows == expected
    table = run("score", folder / "*.wav", "-o", tmp_path / "scores.csv")
    assert table.exit_code == 0, table.output
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert [float(row["nll"]) for row in csv.DictReader(file)] == [one["nll"] for one in expected]
    monkeypatch.chdir(tmp_path)
    shown = run("score", folder.name)  # a table of 80 columns breaks long paths
    assert all(f"{path.name}" in shown.stdout for path in paths) and f"{expected[0]['nll']:.3f}" in shown.stdout


def test_a_corpus_without_clips_is_told(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    out = tmp_path / "scores.jsonl"
    for corpus in (tmp_path / "clips", tmp_path / "empty.jsonl"):
        made = run("score", corpus, "-o", out)
        assert made.exit_code == 1 and f"{corpus.name}: there are no clips to score" in told(made)
        assert not out.exists(), "nothing is in the way of the next try"
    piped = CliRunner().invoke(cli, ["score", "-", "-o", str(out)], input="")
    assert piped.exit_code == 1 and "there are no clips to score" in told(piped)


def test_a_submission_to_zerospeech_is_gone_on_with(tmp_path: Path) -> None:
    """Cut off within a line, with a clip that failed: each that can be scored has one line, as JSON has its number."""
    folder, out = make_clips(tmp_path / "clips", 3), tmp_path / "dev.txt"
    expected = {
        Path(row["id"]).stem: row["log_likelihood"]
        for row in map(json.loads, run("score", folder, "--response-format", "jsonl").stdout.splitlines())
    }
    arguments = ("score", folder, "--response-format", "zerospeech", "-o", out)
    assert run(*arguments).exit_code == 0
    whole = out.read_text()
    assert {line.split(" ")[0]: float(line.split(" ")[1]) for line in whole.splitlines()} == expected
    out.write_text(whole[:-5])
    (folder / "9.wav").write_text("words, and no audio")
    again = run(*arguments, "--resume")
    assert again.exit_code == 1 and "1 clips scored, 1 failed; 2 were there" in told(again)
    assert out.read_text() == whole
    make_clips(folder / "test", 1)  # of the same name as one that has its line
    (folder / "9.wav").unlink()
    twice = run("score", folder, "--response-format", "zerospeech")
    assert twice.exit_code == 1 and "there is another clip of the name 0000" in told(twice)
    still = run(*arguments, "--resume")
    assert still.exit_code == 1 and "there is another clip of the name 0000" in told(still), "not taken for scored"
    assert out.read_text() == whole
    out.write_text("filename,nll\n")
    assert "none of ours" in told(run(*arguments, "--resume"))


def test_what_a_corpus_cannot_be_written_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_clips(tmp_path / "clips", 1)
    clip = next(folder.iterdir())
    for arguments, part in (
        ([folder, "-o", tmp_path / "a.json"], "a corpus is written to .jsonl, .csv, .parquet"),
        ([folder, "--json"], "a corpus has a row a clip"),
        ([folder, "--response-format", "textgrid"], "a corpus has a row a clip"),
        ([folder, "--url", "localhost:9"], "--url takes sound files, and no corpus"),
        ([folder, "--plot", tmp_path / "a.png"], "--plot takes sound files, and no corpus"),
        ([folder, "--resume"], "--resume goes on with a file"),
        ([folder, "--response-format", "parquet"], "parquet is a folder of files: name it with --out"),
        ([clip, "--resume", "--json"], "a corpus has a row a clip"),
        ([folder, "--response-format", "csv", "--detail", "tokens"], "detail: csv has no room for it"),
        ([tmp_path / "no*.wav"], "no file is named like that"),
        ([folder, "-o", tmp_path / "no" / "a.csv"], "does not exist"),
    ):
        result = run("score", *arguments)
        assert result.exit_code == 1 and part in told(result), result.output
    monkeypatch.setattr("app.corpora.rows.find_spec", lambda name: None)
    assert "parquet needs pyarrow: pip install" in told(run("score", clip, "-o", tmp_path / "a.parquet"))


def test_an_id_that_comes_twice_is_scored_once_and_told(tmp_path: Path) -> None:
    folder, out = make_clips(tmp_path / "clips", 2), tmp_path / "scores.csv"
    (tmp_path / "wav.scp").write_text("a clips/0000.wav\na clips/0001.wav\n")
    result = run("score", tmp_path / "wav.scp", "-o", out)
    assert result.exit_code == 1 and "a comes twice" in told(result) and "1 came twice" in told(result)
    assert folder.exists() and out.read_text().count("\n") == 2


def begun(bundle: Path, *arguments: object) -> subprocess.Popen[bytes]:
    code = "import sys; from app.cli.main import main; sys.argv[0] = 'whisper-gpt'; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WHISPERGPT_BUNDLE": str(bundle), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "score", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def rows_so_far(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def children(pid: int) -> list[int]:
    """Processes of a process, those that only keep its accounts left out."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc: run it on Linux")
def test_a_thousand_clips_with_kills_have_a_row_each(bundle: Path, tmp_path: Path) -> None:
    """A worker is killed, then Ctrl-C, then all at once; each time it is gone on with."""
    folder, out = make_clips(tmp_path / "clips", MANY), tmp_path / "scores.jsonl"
    command = (bundle, folder, "-o", out, "--resume", "--processes", 2)

    def wait_for(process: subprocess.Popen[bytes], rows: int) -> None:
        while rows_so_far(out) < rows:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.02)

    process = begun(*command)
    wait_for(process, 100)
    os.kill(children(process.pid)[0], signal.SIGKILL)  # a worker
    wait_for(process, 300)
    assert len(children(process.pid)) == 2, "another took its place"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert b"--resume goes on" in process.communicate()[1]
    kept = out.read_bytes()
    assert kept.endswith(b"\n")
    process = begun(*command)
    wait_for(process, 600)
    process.kill()
    process.communicate()
    assert rows_so_far(out) < MANY, "killed in the middle"
    process = begun(*command)
    errors = process.communicate(timeout=600)[1].decode()
    assert process.returncode == 0, errors
    assert out.read_bytes().startswith(kept)
    found = lines(out)
    assert Counter(row["id"] for row in found) == Counter(str(path) for path in folder.iterdir())
    by_id = {row["id"]: row for row in found}
    for path in sorted(folder.iterdir())[::100]:
        (alone,) = json.loads(run("score", path, "--json").stdout)["results"]
        assert by_id[str(path)] == {"id": str(path), **alone}
