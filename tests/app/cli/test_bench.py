"""`whisper-gpt bench` against a real server with a tiny model."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from app.cli.bench import clips, made_up_clip
from app.cli.main import cli
from app.main import create_app
from app.settings import Settings
from model.checkpoint import Bundle
from model.constants import SAMPLE_RATE_HZ
from tests.support.live import listening

SPEECH = Path(__file__).parents[3] / "examples" / "speech.flac"
KEY = ("--api-key", "sesame")


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[str]:
    """Two slots, no queue, and a key."""
    settings = Settings(threads=1, slots=2, queue=0, api_keys=[SecretStr("sesame")])
    with listening(create_app(settings, bundle)) as url:
        yield url


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)], env={"COLUMNS": "160"})


def measured(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json", *KEY)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_whole_answers(server: str) -> None:
    found = measured(server, "--requests", 5, "--seconds", 0.5, "--concurrency", 2)
    assert found["answered"] == found["requests"] == 5 and not found["errors"]
    figures = found["figures"]
    assert 0 < figures["first_audio_seconds"]["p50"] <= figures["total_seconds"]["p50"]
    assert figures["total_seconds"]["p50"] <= figures["total_seconds"]["p99"] <= found["seconds"]
    assert figures["real_time_factor"]["p50"] >= figures["real_time_factor"]["p99"] > 0
    assert figures["queue_seconds"]["p50"] >= 0
    assert found["audio_seconds_a_second"] == pytest.approx(5 * 38 / 75 / found["seconds"])  # 0.5 s: 38 whole frames
    assert found["conditions"]["model"]["preset"] == "tiny" and "sesame" not in json.dumps(found)


@pytest.mark.parametrize("form", ["json", "pcm"])
def test_streams(server: str, form: str) -> None:
    found = measured(server, "--stream", "--response-format", form, "--requests", 4, "--concurrency", 2, "--seconds", 1)
    figures = found["figures"]
    assert found["answered"] == found["streams"] == 4 and not found["errors"]
    assert 0 < figures["first_audio_seconds"]["p50"] < figures["total_seconds"]["p50"]
    assert figures["buffer_needed_seconds"]["p50"] >= 0
    assert found["audio_seconds_a_second"] == pytest.approx(4 / found["seconds"])
    assert (figures["queue_seconds"] is None) == (form == "pcm")


def test_the_table_tells_of_streams_that_ran_dry(server: str) -> None:
    result = run(server, "--stream", "--requests", 1, "--seconds", 0.5, "--buffer", 5, *KEY)
    assert "0 of 1 streams ran dry while playing with 5 s held back" in result.stdout, result.output


def test_files_take_turns(server: str, tmp_path: Path, clip: bytes) -> None:
    second = tmp_path / "second.flac"
    second.write_bytes(clip)
    found = measured(server, "--requests", 4, "--seconds", 0.2, "--prompt", SPEECH, "--prompt", second)
    assert found["answered"] == 4 and found["conditions"]["clips"] == ["speech.flac", "second.flac"]


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_an_open_loop_runs_into_429(server: str, arrivals: str) -> None:
    """30 s of audio in each of 2 places, 200 requests a second: nearly all are turned away, at once."""
    found = measured(
        server, "--rate", 200, "--arrivals", arrivals, "--requests", 40, "--seconds", 30, "--response-format", "pcm"
    )
    assert found["overloaded"] == found["errors"]["429 overloaded"] >= 10
    assert found["answered"] + found["overloaded"] == 40


def test_scores(server: str) -> None:
    found = measured(server, "--route", "score", "--requests", 2, "--prompt-seconds", 2, "--warmup", 0)
    assert found["answered"] == 2 and found["figures"]["real_time_factor"]["p50"] > 0
    assert found["figures"]["first_audio_seconds"] is None


def test_table_and_file(server: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = run(server, "--duration", 0.5, "--rate", 6, "--arrivals", "constant", "--seconds", 0.1, "--out", out, *KEY)
    assert result.exit_code == 0, result.output
    assert "first audio, s" in result.stdout and "p99" in result.stdout and "of 3 requests answered" in result.stdout
    written = json.loads(out.read_text())
    assert [round(one["scheduled"], 3) for one in written["outcomes"]] == [0.0, 0.167, 0.333]


def test_nothing_answered_is_a_failure(server: str, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("no sound")
    result = run(server, "--prompt", text, "--requests", 2, "--warmup", 0, *KEY)
    assert result.exit_code == 1 and "2 failed: 415 unsupported_format" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", 1, "--concurrency", 2), "exclude each other"),
        (("--rate", 0), "--rate must be above 0"),
        (("--rate", "nan"), "--rate must be above 0"),
        (("--duration", -1), "--duration must be above 0"),
        (("--stream", "--route", "score"), "--stream is for"),
        (("--prompt", "nowhere.wav"), "nowhere.wav does not exist"),
    ],
)
def test_what_cannot_be_asked(server: str, arguments: tuple[object, ...], words: str) -> None:
    result = run(server, *arguments, *KEY)
    assert result.exit_code == 1 and words in result.stderr and "Traceback" not in result.output


def test_no_server_and_no_key(server: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = run(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert result.exit_code == 1 and "no answer from" in result.stderr
    assert "401" in run(server).stderr


def test_the_made_up_clip_has_its_length_and_varies() -> None:
    samples = made_up_clip(3.0)
    assert len(samples) == 3 * SAMPLE_RATE_HZ and 0.02 < samples.std() < 0.5 and abs(samples).max() <= 1
    ((name, content),) = clips([], 3.0)
    assert name == "clip.wav" and len(content) == 44 + 2 * len(samples)
