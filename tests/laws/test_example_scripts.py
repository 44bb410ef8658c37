"""The example scripts do what they say, against a real server with random weights."""

import csv
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.process import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"continue_in_parts", "score_folder", "best_of", "odd_one_out", "watch_live"}
Script = Callable[..., Any]


@pytest.fixture(scope="module")
def url(saved_bundle: Path) -> Iterator[str]:
    server = Server(saved_bundle)
    yield f"http://127.0.0.1:{server.port}"
    server.close()


@pytest.fixture
def script(url: str) -> Callable[[str], Script]:
    def load(name: str) -> Script:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return lambda *arguments: module.main([*map(str, arguments), "--url", url])

    return load


def test_all_of_them_are_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SCRIPTS | {"make_examples"}


def test_parts(script: Callable[[str], Script], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("continue_in_parts")(EXAMPLES / "music.flac", tmp_path / "long.wav", "--seconds", "16")
    samples, rate = soundfile.read(tmp_path / "long.wav")
    assert rate == 24_000 and len(samples) == 16 * rate
    assert len(capsys.readouterr().out.splitlines()) == 2, "two parts"


def test_folder(script: Callable[[str], Script], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips" / "more").mkdir(parents=True)
    for index in range(9):
        shutil.copy(EXAMPLES / "speech.flac", tmp_path / "clips" / f"{index}.flac")
    shutil.copy(EXAMPLES / "music.flac", tmp_path / "clips" / "more" / "music.flac")
    (tmp_path / "clips" / "broken.wav").write_bytes(b"no audio")
    script("score_folder")(tmp_path / "clips", tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["filename"] for row in rows} == {f"{index}.flac" for index in range(9)} | {"more/music.flac"}
    assert [float(row["nll"]) for row in rows] == sorted(float(row["nll"]) for row in rows)
    told = capsys.readouterr().out
    assert "broken.wav: " in told and "10 of 11 clips" in told


def test_best(script: Callable[[str], Script], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("best_of")(EXAMPLES / "speech.flac", tmp_path / "best.wav", "--takes", "5", "--seconds", "1")
    samples, rate = soundfile.read(tmp_path / "best.wav")
    assert len(samples) == rate
    nlls = [float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(nlls) == 5 and nlls == sorted(nlls)


def test_odd(script: Callable[[str], Script], tmp_path: Path) -> None:
    files = []
    for name, start in (("a", 0), ("b", 0), ("c", 0)):
        samples, rate = soundfile.read(EXAMPLES / "speech.flac", start=start)
        files.append(tmp_path / f"{name}.wav")
        soundfile.write(files[-1], samples, rate)
    noise = tmp_path / "noise.wav"
    soundfile.write(noise, 0.1 * np.random.default_rng(0).standard_normal(72_000), 24_000)
    assert script("odd_one_out")(*files, noise) == str(noise)
    with pytest.raises(SystemExit):
        script("odd_one_out")(*files[:2])


def test_live(script: Callable[[str], Script], capsys: pytest.CaptureFixture[str]) -> None:
    script("watch_live")(EXAMPLES / "speech.flac", "--fast")
    *scored, whole = capsys.readouterr().out.splitlines()
    assert len(scored) == 31, "475 frames, but for what is read at the commit"
    assert whole.startswith("6.33 s, ")
