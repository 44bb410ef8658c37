"""The command line, driven in-process; `serve` runs for real in tests/laws/test_readme.py."""

import base64
import csv
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import pytest
import soundfile
import typer
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from app import __version__
from app.cli.interrupt import Stopped
from app.cli.main import cli
from app.cli.options import dataclass_options
from app.cli.train import run_all
from app.errors import UserError
from app.main import create_app
from app.settings import Settings, load_settings
from model.checkpoint import load_bundle, random_bundle, save_bundle
from model.constants import SAMPLE_RATE_HZ
from model.training.export import find_codec
from model.training.train_codec import CodecTraining
from model.training.train_decoder import DecoderTraining
from tests.support.live import listening

EXAMPLES = Path(__file__).parents[3] / "examples"
SPEECH, MUSIC = EXAMPLES / "speech.flac", EXAMPLES / "music.flac"


@pytest.fixture(scope="module")
def bundle(saved_bundle: Path) -> Path:
    return saved_bundle


@pytest.fixture(autouse=True)
def environment(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WHISPERGPT_{name.upper()}", raising=False)
    for name in ("CONFIG", "FORBID_SKIPS", "TEST_BUNDLE"):
        monkeypatch.delenv(f"WHISPERGPT_{name}", raising=False)
    monkeypatch.setenv("WHISPERGPT_CONFIG", "")  # restored afterwards, whatever --config sets
    monkeypatch.setenv("WHISPERGPT_BUNDLE", str(bundle))
    monkeypatch.setenv("WHISPERGPT_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[str]:
    """A real server on a free port, that wants a key; its URL."""
    settings = Settings(bundle=bundle, threads=1, api_keys=[SecretStr("sesame")])
    with listening(create_app(settings)) as url:
        yield url


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str) -> None:
    """One line on standard error, exit code 1, no traceback."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


COMMANDS = ("serve", "continue", "score", "train codec", "train decoder", "train lm", "eval", "config show")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_version() -> None:
    assert run("--version").output.strip() == __version__


def test_serve_has_a_flag_for_every_setting() -> None:
    shown = run("serve", "--help").output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown
        assert f"WHISPERGPT_{name.upper()}" in shown


def test_serve_without_weights(tmp_path: Path) -> None:
    refused(run("serve", "--bundle", tmp_path), "no bundle in", "--bundle")


def test_serve_with_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "codec.safetensors").write_bytes(b"not weights")
    refused(run("serve", "--bundle", tmp_path / "damaged", "--port", 0), "codec.safetensors")


def test_serve_with_a_bad_value() -> None:
    refused(run("serve", "--port", "70000"), "port", "70000")


# continue


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".opus"])
def test_continue_makes_sound(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for file in files:
        result = run("continue", SPEECH, "-o", file, "--seconds", 0.5, "--seed", 5)
        assert result.exit_code == 0, result.output
        assert "0.51 s made, seed 5" in result.output  # 38 frames: rounded up
    samples, rate = soundfile.read(files[0])
    assert (len(samples), rate) == (38 * 320, SAMPLE_RATE_HZ)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_continue_as_json(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert run("continue", SPEECH, "-o", out, "--seconds", 0.2, "--seed", 5).exit_code == 0
    body = json.loads(out.read_text())
    (choice,) = body["choices"]
    assert body["seed"] == 5
    assert body["prompt"]["tokens"] == 475
    assert len(choice["tokens"]) == len(choice["logprobs"]) == 15
    assert choice["nll"] == pytest.approx(-np.mean(choice["logprobs"]))
    assert base64.b64decode(choice["audio"]["data"])[:4] == b"RIFF"


def test_continue_after_the_prompt(tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    result = run(
        "continue", SPEECH, "-o", out, "--seconds", 0.2, "--include-prompt", "--prompt-start", 1, "--prompt-end", 2
    )
    assert result.exit_code == 0, result.output
    samples, _ = soundfile.read(out)
    prompt, _ = soundfile.read(SPEECH)
    assert len(samples) == pytest.approx(1.2 * SAMPLE_RATE_HZ, abs=320)
    assert np.abs(samples[:20_000] - prompt[24_000:44_000]).max() < 1e-3


def test_continue_tells_what_is_wrong(tmp_path: Path) -> None:
    out, text = tmp_path / "out.wav", tmp_path / "text.wav"
    text.write_text("no audio at all, only words")
    refused(run("continue", tmp_path / "none.wav", "-o", out), "none.wav does not exist")
    refused(run("continue", text, "-o", out), "audio file")
    refused(run("continue", SPEECH, "-o", tmp_path / "out.xyz"), ".mp3, .pcm or .json")
    refused(run("continue", SPEECH, "-o", tmp_path / "no" / "out.wav"), "does not exist")
    refused(run("continue", SPEECH, "-o", out, "--prompt-end", 0.01), "a prompt needs 0.10 s or more")
    refused(run("continue", SPEECH, "-o", out, "--prompt-start", 60), "6.34 s")
    refused(run("continue", SPEECH, "-o", out, "--bundle", tmp_path), "no bundle in")
    refused(run("continue", SPEECH, "-o", out, "--url", "http://127.0.0.1:9"), "no answer from")
    refused(run("continue", EXAMPLES, "-o", out), "is a folder; name the files in it")
    refused(run("continue", SPEECH, "-o", tmp_path), "is a folder; name a file in it")
    refused(run("continue", SPEECH, "-o", out, "--codebooks", 9), "codebooks", "less than or equal to 8")
    assert not out.exists()


@pytest.mark.parametrize(
    ("route", "values", "words"),
    [
        ("continue", {"seed": 2**63}, "seed: Input should be less than or equal to 9223372036854775807"),
        ("continue", {"seed": 10**30}, "seed: "),
        ("continue", {"seed": -1}, "seed: "),
        ("continue", {"seconds": 0.05}, "seconds: Input should be greater than or equal to 0.1"),
        ("continue", {"seconds": "nan"}, "seconds: Input should be a finite number"),
        ("continue", {"temperature": 2.5}, "temperature: "),
        ("continue", {"top_k": -1}, "top_k: "),
        ("continue", {"top_p": 0}, "top_p: Input should be greater than 0"),
        ("continue", {"prompt_start": 5, "prompt_end": 3}, "prompt_end: must lie after prompt_start"),
        ("score", {"prompt_seconds": 1e9}, "prompt_seconds: "),
        ("score", {"window_seconds": 0}, "window_seconds: "),
        ("score", {"prompt_seconds": 2, "window_start": 1}, "window_start: must not lie before prompt_seconds"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_values_are_refused_in_the_servers_words(
    server: str, tmp_path: Path, route: str, values: dict[str, object], words: str
) -> None:
    options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    out = ["-o", tmp_path / "out.wav"] if route == "continue" else []
    result = run(route, SPEECH, *out, *options)
    refused(result, words)
    answer = httpx.post(
        f"{server}/{route}", data={name: str(value) for name, value in values.items()},
        files={"file": SPEECH.read_bytes()}, headers={"authorization": "Bearer sesame"},
    )  # fmt: skip
    assert result.stderr.strip() == f"error: {answer.json()['error']['message']}"


@pytest.mark.parametrize(
    ("route", "flags"),
    [
        ("continue", {"codebooks": 4}), ("continue", {"mel": "decoded"}), ("continue", {"bundle": "weights"}),
        ("continue", {"device": "cpu"}), ("continue", {"threads": 2}), ("score", {"mel": "real"}),
        ("score", {"bundle": "weights"}), ("score", {"device": "cpu", "threads": 2}),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else given,
)  # fmt: skip
def test_what_a_server_does_not_heed_is_refused(tmp_path: Path, route: str, flags: dict[str, object]) -> None:
    options = [part for name, value in flags.items() for part in (f"--{name}", value)]
    out = ["-o", tmp_path / "out.wav"] if route == "continue" else []
    refused(run(route, SPEECH, *out, *options, "--url", "localhost:9"), f"{', '.join(f'--{name}' for name in flags)} ")


@pytest.mark.parametrize("suffix", ["wav", "pcm", "opus", "mp3"])
@pytest.mark.parametrize("remote", [False, True], ids=["here", "there"])
def test_a_streamed_file_is_the_whole_one(server: str, tmp_path: Path, suffix: str, remote: bool) -> None:
    """To the byte, the sizes of a WAV included: a file can be mended when it is finished."""
    options = ["--seconds", 0.5, "--seed", 5, "--include-prompt", "--prompt-end", 2]
    whole, streamed = tmp_path / f"whole.{suffix}", tmp_path / f"streamed.{suffix}"
    assert run("continue", SPEECH, "-o", whole, *options).exit_code == 0
    if remote:
        options += ["--url", server, "--api-key", "sesame"]
    result = run("continue", SPEECH, "-o", streamed, "--stream", *options)
    assert result.exit_code == 0, result.output
    assert "seed 5" in result.stderr
    assert streamed.read_bytes() == whole.read_bytes()


def test_standard_output_gets_bare_pcm(server: str, tmp_path: Path) -> None:
    out = tmp_path / "out.pcm"
    options = ["--seconds", 0.5, "--seed", 5]
    assert run("continue", SPEECH, "-o", out, *options).exit_code == 0
    for more in ([], ["--url", server, "--api-key", "sesame"]):
        result = run("continue", SPEECH, "-o", "-", *options, *more)
        assert result.exit_code == 0, result.output
        assert result.stdout_bytes == out.read_bytes()


def test_a_player_that_was_closed_ends_the_command(bundle: Path) -> None:
    command = [sys.executable, "-m", "app.cli.main", "continue", str(SPEECH), "-o", "-", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        assert len(running.stdout.read(6_400)) == 6_400
        running.stdout.close()
        assert running.wait(60) == 1
        assert b"Traceback" not in running.stderr.read()


def test_what_cannot_be_streamed_leaves_no_file(server: str, tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio at all, only words")
    for suffix in ("flac", "json"):
        refused(run("continue", SPEECH, "-o", tmp_path / f"out.{suffix}", "--stream"), ".wav, .pcm, .opus, .mp3")
    out = tmp_path / "out.wav"
    refused(run("continue", text, "-o", out, "--stream"), "audio file")
    remote = ["--stream", "--url", server, "--api-key", "sesame"]
    refused(run("continue", text, "-o", out, *remote), "415 unsupported_format")
    refused(run("continue", SPEECH, "-o", out, "--prompt-end", 0.01, "--stream"), "a prompt needs 0.10 s or more")
    assert not out.exists()


def test_a_stream_that_breaks_off_is_told(tmp_path: Path) -> None:
    """A server that ends the connection in the middle of a chunked body, as ours does for bare audio."""
    out = tmp_path / "out.pcm"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/pcm\r\ntransfer-encoding: chunked\r\n\r\n"

    def answer() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65_536)
            client.sendall(head + b"4\r\nabcd\r\n")
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        refused(run("continue", SPEECH, "-o", out, "--stream", "--url", url), "broke off")
        thread.join(10)
    assert out.read_bytes() == b"abcd"


# score


def test_score_as_a_table(tmp_path: Path) -> None:
    result = run("score", SPEECH, MUSIC)
    assert result.exit_code == 0, result.output
    assert "speech.flac" in result.output
    assert "475" in result.output
    assert "562" in result.output


def test_score_as_json(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio at all, only words")
    result = run("score", SPEECH, text, "--json", "--detail", "tokens", "--prompt-seconds", 1)
    assert result.exit_code == 1, "one of the clips could not be scored"
    assert result.stderr.startswith("text.wav: ")
    body = json.loads(result.stdout)
    good, bad = body["results"]
    assert good["tokens"] == len(good["logprobs"]) == len(good["codes"]) == 400
    assert good["nll"] == pytest.approx(-np.mean(good["logprobs"]), abs=1e-5)
    assert bad["filename"] == "text.wav"
    assert "message" in bad["error"]


def test_score_of_a_window() -> None:
    options = ["--window-start", 1, "--window-seconds", 2, "--normalise-by", "alone"]
    (one,) = json.loads(run("score", SPEECH, *options, "--json", "--detail", "tokens").stdout)["results"]
    window = one["window"]
    assert (window["start"], window["tokens"]) == (1.0, 150)
    assert window["nll"] == pytest.approx(-np.mean(one["logprobs"][75:225]), abs=1e-5)
    assert window["normalised_nll"] == pytest.approx(window["nll"] - window["baseline_nll"])
    table = run("score", SPEECH, *options).output
    assert "window nll" in table and "normalised" in table
    assert f"{window['nll']:.3f}" in table and f"{window['normalised_nll']:.3f}" in table


def test_score_of_a_window_that_cannot_be() -> None:
    refused(run("score", SPEECH, "--window-start", 1, "--prompt-seconds", 2), "window_start", "prompt_seconds")
    result = run("score", SPEECH, "--window-start", 7)
    assert result.exit_code == 1
    assert "window_start: the window starts at 7.00 s, and the clip has 6.33 s" in result.stderr


@pytest.mark.parametrize("remote", [False, True], ids=["here", "there"])
def test_score_in_other_forms(server: str, tmp_path: Path, remote: bool) -> None:
    """By name or by the file's; here they are made of what a server answers."""
    more = ["--url", server, "--api-key", "sesame"] if remote else []
    table = run("score", SPEECH, MUSIC, "--response-format", "csv", *more)
    assert table.exit_code == 0, table.output
    assert table.stdout_bytes.count(b"\r\n") == table.stdout_bytes.count(b"\n") == 3, "as in a file"
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert [(row["filename"], row["tokens"]) for row in rows] == [("speech.flac", "475"), ("music.flac", "562")]
    labels = tmp_path / "labels.txt"
    assert run("score", SPEECH, "-o", labels, "--prompt-seconds", 1, *more).exit_code == 0
    lines = [line.split("\t") for line in labels.read_text().splitlines()]
    assert len(lines) == 400 and lines[0][0] == "1.000000"
    grid, summary = tmp_path / "speech.TextGrid", tmp_path / "scores.json"
    assert run("score", SPEECH, "-o", grid, "--detail", "full", *more).exit_code == 0
    assert grid.read_text().count("intervals: size = 475") == 4
    assert run("score", SPEECH, "-o", summary, "--window-step", 1, *more).exit_code == 0
    (one,) = json.loads(summary.read_text())["results"]
    assert len(one["scan"]["nll"]) == 6 and "logprobs" not in one


def test_forms_that_cannot_be(tmp_path: Path) -> None:
    refused(run("score", SPEECH, MUSIC, "-o", tmp_path / "labels.txt"), "audacity is of one clip, and these are 2")
    refused(run("score", SPEECH, "-o", tmp_path / "scores.xlsx"), ".csv", ".TextGrid", "--response-format")
    refused(run("score", SPEECH, "--response-format", "csv", "--detail", "tokens"), "detail: csv has no room for it")
    text, labels = tmp_path / "text.wav", tmp_path / "labels.txt"
    text.write_text("no audio at all, only words")
    assert run("score", text, "-o", labels).exit_code == 1
    assert not labels.exists(), "nothing to write"


@pytest.mark.parametrize("remote", [False, True], ids=["here", "there"])
def test_plots(server: str, tmp_path: Path, remote: bool) -> None:
    more = ["--url", server, "--api-key", "sesame"] if remote else []
    scored, made, summary = (tmp_path / name for name in ("score.png", "continuation.png", "out.json"))
    result = run("score", SPEECH, "--plot", scored, "-o", summary, "--window-step", 1, *more)
    assert result.exit_code == 0, result.output
    assert "logprobs" not in json.loads(summary.read_text())["results"][0]
    for options in ([], ["--include-prompt"]):
        out = ["-o", tmp_path / "out.wav", "--seconds", 0.5, "--seed", 5, "--prompt-end", 2]
        result = run("continue", SPEECH, *out, "--plot", made, *options, *more)
        assert result.exit_code == 0, result.output
        drawn = made.read_bytes()
        assert drawn.startswith(b"\x89PNG") and drawn != scored.read_bytes()


def test_plots_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot, out = tmp_path / "plot.png", ["-o", tmp_path / "out.wav"]
    refused(run("score", SPEECH, MUSIC, "--plot", plot), "--plot is of one clip, and these are 2")
    refused(run("score", SPEECH, "--plot", tmp_path / "plot.jpg"), "must end in .png")
    refused(run("continue", SPEECH, *out, "--plot", plot, "--stream"), "leave out --stream")
    monkeypatch.setattr("app.scores.reports.find_spec", lambda name: None)
    for command in (["score", SPEECH], ["continue", SPEECH, *out]):
        refused(run(*command, "--plot", plot), "pip install matplotlib")
    assert not plot.exists()


def test_score_of_nothing_good_fails(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio at all, only words")
    result = run("score", text)
    assert result.exit_code == 1
    assert result.stderr.startswith("text.wav: ")


def test_score_tells_the_good_clips_and_fails_for_the_bad_one(server: str, tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio at all, only words")
    for more in ([], ["--url", server, "--api-key", "sesame"]):
        result = run("score", SPEECH, text, MUSIC, *more)
        assert result.exit_code == 1
        assert "speech.flac" in result.stdout and "music.flac" in result.stdout and "text.wav" not in result.stdout
        assert result.stderr.startswith("text.wav: not a known audio file")


# against a server


@pytest.mark.parametrize("suffix", ["wav", "pcm", "opus", "mp3", "flac"])
def test_server_and_command_line_make_the_same_bytes(server: str, tmp_path: Path, suffix: str) -> None:
    options = ["--seconds", 0.5, "--seed", 5, "--top-p", 0.9, "--include-prompt", "--prompt-end", 2]
    here, there = tmp_path / f"here.{suffix}", tmp_path / f"there.{suffix}"
    assert run("continue", SPEECH, "-o", here, *options).exit_code == 0
    result = run("continue", SPEECH, "-o", there, *options, "--url", server, "--api-key", "sesame")
    assert result.exit_code == 0, result.output
    assert here.read_bytes() == there.read_bytes()


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of which there is something to tell."""
    file = tmp_path_factory.mktemp("silent") / "silent.wav"
    soundfile.write(file, np.zeros(24_000, np.float32), SAMPLE_RATE_HZ)
    return file


@pytest.mark.parametrize("remote", [False, True])
def test_warnings_are_told(server: str, silent: Path, tmp_path: Path, remote: bool) -> None:
    """On standard error, and in what is JSON; here and by a server, whole and streamed, in the same words."""
    more = ["--url", server, "--api-key", "sesame"] if remote else []
    words = "silent.wav: the clip is silent"
    short = ["--seconds", 0.2, *more]
    for out, options in (("a.wav", []), ("a.json", []), ("b.wav", ["--stream"]), ("b.opus", ["--stream"])):
        result = run("continue", silent, "-o", tmp_path / out, *short, *options)
        assert result.exit_code == 0, result.output
        assert result.stderr.count(words) == 1, result.stderr
    assert json.loads((tmp_path / "a.json").read_text())["warnings"][0]["code"] == "silent_clip"
    result = run("continue", SPEECH, "-o", tmp_path / "c.json", *short)
    assert "warnings" not in json.loads((tmp_path / "c.json").read_text())
    for options in ([], ["--json"]):
        result = run("score", SPEECH, silent, *options, *more)
        assert result.exit_code == 0 and result.stderr.count(words) == 1, result.stderr
        assert "silent.wav:" not in result.stdout and "speech.flac:" not in result.stderr
    speech, quiet = json.loads(result.stdout)["results"]
    assert "warnings" not in speech
    assert [one["code"] for one in quiet["warnings"]] == ["silent_clip"]


def test_server_and_command_line_agree_on_scores(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPERGPT_API_KEY", "sesame")
    options = ["--json", "--detail", "tokens", "--prompt-seconds", 0.5, "--window-seconds", 3]
    options += ["--normalise-by", "alone"]
    here = json.loads(run("score", SPEECH, MUSIC, *options).stdout)["results"]
    there = json.loads(run("score", SPEECH, MUSIC, *options, "--url", server).stdout)["results"]
    for mine, other in zip(here, there, strict=True):
        assert (mine["filename"], mine["codes"]) == (other["filename"], other["codes"])
        assert mine["logprobs"] == pytest.approx(other["logprobs"], abs=1e-6)
        assert mine["nll"] == pytest.approx(other["nll"], abs=1e-6)
        assert mine["window"] == pytest.approx(other["window"], abs=1e-6)


def test_a_url_needs_no_scheme(server: str, tmp_path: Path) -> None:
    """As with curl, and in the README."""
    bare = server.removeprefix("http://")
    out = tmp_path / "out.wav"
    options = ["--seconds", 0.2, "--url", bare, "--api-key", "sesame"]
    assert run("continue", SPEECH, "-o", out, *options).exit_code == 0
    assert out.exists()
    assert run("score", SPEECH, "--url", bare, "--api-key", "sesame").exit_code == 0
    bench = run("bench", bare, "--requests", 1, "--warmup", 0, "--seconds", 0.2, "--api-key", "sesame")
    assert bench.exit_code == 0, bench.output


def test_errors_of_a_server_are_told(server: str, tmp_path: Path) -> None:
    text, out = tmp_path / "text.wav", tmp_path / "out.wav"
    text.write_text("no audio at all, only words")
    key = ["--api-key", "sesame"]
    refused(run("continue", SPEECH, "-o", out, "--url", server), "401 invalid_api_key")
    refused(run("continue", text, "-o", out, "--url", server, *key), "415 unsupported_format", "request ")
    refused(run("continue", SPEECH, "-o", out, "--url", server, *key, "--seconds", 31), "422 invalid_parameter")
    refused(run("continue", SPEECH, "-o", out, "--url", server + "/nowhere", *key), "404")


# train and eval


def test_train_makes_a_bundle_that_eval_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "audio"
    folder.mkdir()
    for index in range(2):
        for clip in (SPEECH, MUSIC):
            (folder / f"{clip.stem}{index}.flac").write_bytes(clip.read_bytes())
    codec = ["train", "seanet", folder, "--out", "codec", "--threads", 1, "--batch", 4, "--n-filters", 2]
    codec += ["--lstm-layers", 1, "--frame-dim", 16, "--frame-blocks", 1, "--kmeans-at", ""]
    first = run(*codec, "--steps", 2)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "codec" / "codec.safetensors").exists()
    refused(run(*codec, "--steps", 3), "other settings", "training")
    before, tokeniser = (tmp_path / "codec" / "codec.safetensors").read_bytes(), find_codec(tmp_path / "codec")[1]
    decoder = ["train", "decoder", folder, "--codec", "codec", "--out", "decoder", "--threads", 1, "--batch", 2]
    decoder += ["--decoder", "harmonic", "--reader-steps", 1, "--reader-batch", 2]
    decoder += ["--steps", 3, "--adversarial-from", 1, "--music-share", 0]
    alone = run(*decoder)
    assert alone.exit_code == 0, alone.output
    assert (tmp_path / "decoder" / "codec.safetensors").read_bytes() != before
    assert find_codec(tmp_path / "decoder")[1] == tokeniser
    refused(run(*codec, "--decoder", "harmonic", "--out", "other"), "train a `frame` decoder first")
    language = ["train", "lm", folder, "--codec", "decoder", "--preset", "tiny", "--out", "lm", "--bundle", "made"]
    second = run(*language, "--steps", 2, "--batch", 2, "--length", 64, "--threads", 1, "--licence", "CC0-1.0")
    assert second.exit_code == 0, second.output
    made = load_bundle(tmp_path / "made")
    assert (made.name, made.preset, made.licence) == ("made", "tiny", "CC0-1.0")
    assert made.made_by["steps"] == 2
    assert made.codec.config.decoder == "harmonic"
    (tmp_path / "made" / "codec.safetensors").chmod(0o600)
    again = run(*decoder, "--bundle", "made")  # the run is done: no step is made
    assert again.exit_code == 0 and "made has the new decoder" in again.output, again.output
    assert load_bundle(tmp_path / "made").hashes == made.hashes
    assert made.lm.unigram.exp().sum() == pytest.approx(1.0, abs=1e-2)
    assert made.lm.unigram.std() > 0.01, "the unigram of the tokens, not of nothing"
    third = run("eval", SPEECH, "--bundle", "made", "--out", "eval.json", "--max-seconds", 3, "--threads", 1)
    assert third.exit_code == 0, third.output
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["clips"] == 1
    assert set(report["codec"]["codebooks"]) == {"1", "2", "4", "8"}
    assert np.isfinite(report["language_model"]["real"]["nll"]["mean"])


def test_train_goes_on_with_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codec, shape, licence and levels come from it; what cannot be combined is refused before anything is computed."""
    monkeypatch.chdir(tmp_path)
    start = random_bundle()
    start.licence, start.levels = "CC0-1.0", tuple(token % 4 for token in range(1024))
    save_bundle(start, tmp_path / "start")
    language = ["train", "lm", SPEECH, "--start-from", "start", "--out", "lm", "--threads", 1]
    language += ["--steps", 2, "--batch", 2, "--length", 64]
    done = run(*language, "--bundle", "mine")
    assert done.exit_code == 0, done.output
    made, before = load_bundle(tmp_path / "mine"), load_bundle(tmp_path / "start")
    assert (made.name, made.preset, made.licence) == ("mine", "tiny", "CC0-1.0")
    assert made.levels == start.levels and made.lm.config == start.lm.config
    assert made.hashes["codec.safetensors"] == before.hashes["codec.safetensors"]
    assert made.hashes["decoder.safetensors"] != before.hashes["decoder.safetensors"]
    for parameter, first in zip(made.lm.parameters(), before.lm.parameters(), strict=True):
        assert float((parameter - first).abs().max()) < 0.1, "it went on from these weights"
    refused(run(*language, "--bundle", "start"), "start is the bundle to start from")
    refused(run(*language, "--preset", "gpt-s"), "start is of another shape (tiny)")
    save_bundle(random_bundle(seed=1), tmp_path / "other")
    refused(run(*language, "--codec", "other"), "start has learned the tokens of another codec")
    refused(run("train", "lm", SPEECH), "--codec is needed")
    for trainer in ("lm", "codec", "seanet"):
        refused(run("train", trainer, SPEECH, "--start-from", "gone", "--out", "unborn"), "gone does not exist")
    assert not (tmp_path / "unborn").exists(), "a run keeps its settings: the right name would be refused there"


def test_train_makes_a_codec_of_tones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "audio"
    folder.mkdir()
    for clip in (SPEECH, MUSIC):
        (folder / clip.name).write_bytes(clip.read_bytes())
    codec = ["train", "codec", folder, "--out", "codec", "--threads", 1, "--batch", 2, "--frame-dim", 16]
    codec += ["--frame-blocks", 1, "--encoder-dim", 16, "--encoder-blocks", 1, "--kmeans-at", "1"]
    made = run(*codec, "--steps", 4, "--waveform-from", 2)
    assert made.exit_code == 0, made.output
    found = find_codec(tmp_path / "codec")[0]
    assert (found.config.encoder, found.config.decoder) == ("spectral", "source_filter")
    refused(run(*codec, "--steps", 5), "other settings", "training")
    refused(run(*codec, "--decoder", "frame"), "train seanet")


def test_train_tells_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("train", "codec", tmp_path / "none"), "none does not exist")
    refused(run("train", "codec", tmp_path), "no audio or MIDI")
    (tmp_path / "file").touch()
    refused(run("train", "codec", EXAMPLES, "--out", "file"), "file is a file; name a folder")
    refused(run("eval", SPEECH, "--out", tmp_path), "is a folder; name a file in it")
    refused(run("train", "lm", EXAMPLES, "--codec", tmp_path), "no training run")
    refused(run("train", "codec", EXAMPLES, "--kmeans-at", "soon"), "soon")


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    def steps() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="begins anew"):
        run_all(steps(), tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(Stopped, match="goes on from the last checkpoint"):
        run_all(steps(), tmp_path)


def test_dataclass_fields_become_options() -> None:
    @dataclass(frozen=True)
    class Knobs:
        steps: Annotated[int, "how many"] = 3
        at: tuple[int, ...] = (1, 2)
        low: bool = False
        rows: tuple[tuple[int, float], ...] = ((1, 0.5),)  # nothing that one types: no option

    seen: list[tuple[str, Knobs]] = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @dataclass_options
    def command(name: Annotated[str, typer.Argument()], knobs: Knobs) -> None:
        seen.append((name, knobs))

    assert CliRunner().invoke(app, ["x"]).exit_code == 0
    assert CliRunner().invoke(app, ["y", "--steps", "5", "--at", "7,8,9", "--low"]).exit_code == 0
    assert seen == [("x", Knobs()), ("y", Knobs(5, (7, 8, 9), True))]
    text = CliRunner().invoke(app, ["--help"]).output
    assert "how many  [default: 3]" in text and "--rows" not in text
    assert isinstance(CliRunner().invoke(app, ["z", "--at", "one"]).exception, UserError)


def test_every_training_setting_is_an_option() -> None:
    for command, settings in (("seanet", CodecTraining), ("decoder", DecoderTraining)):
        shown = run("train", command, "--help").output
        for name, one in settings.__dataclass_fields__.items():
            table = isinstance(one.default, tuple) and one.default and isinstance(one.default[0], tuple)  # no option
            assert table or f"--{name.replace('_', '-')}" in shown, name


# config


def test_config_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 9001\nqueue = 3\nlog_level = "debug"\n')
    monkeypatch.setenv("WHISPERGPT_QUEUE", "4")
    shown = json.loads(run("config", "show", "--config", file, "--json").stdout)
    assert (shown["port"], shown["queue"], shown["log_level"]) == (9001, 4, "debug")
    assert shown["host"] == "127.0.0.1"


def test_config_hides_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPERGPT_API_KEYS", '["very-secret"]')
    for arguments in ([], ["--json"]):
        result = run("config", "show", *arguments)
        assert result.exit_code == 0, result.output
        assert "very-secret" not in result.output


@pytest.mark.parametrize("given", ["first,second", " first , second ", '["first", "second"]'])
def test_keys_are_separated_by_commas_or_a_json_list(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("WHISPERGPT_API_KEYS", given)
    assert [key.get_secret_value() for key in load_settings().api_keys] == ["first", "second"]


@pytest.mark.parametrize("given", ["", ",", "first,", "[]x", '["first"', "[1]"])
def test_keys_that_cannot_be_meant_are_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A server that was to have keys must not start without them."""
    monkeypatch.setenv("WHISPERGPT_API_KEYS", given)
    refused(run("config", "validate"), "api_keys")
    assert "first" not in run("config", "validate").output


def test_keys_as_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr("app.cli.serve.serve", seen.append)
    file = tmp_path / "settings.toml"
    file.write_text('api_keys = ["with,comma", "other"]\n')
    for arguments in (["--api-keys", "a,b"], ["--api-keys", "a", "--api-keys", "b"], ["--config", file]):
        assert run("serve", *arguments).exit_code == 0
    keys = [[key.get_secret_value() for key in settings.api_keys] for settings in seen]
    assert keys == [["a", "b"], ["a", "b"], ["with,comma", "other"]]


def test_config_validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("config", "validate").exit_code == 0
    file = tmp_path / "settings.toml"
    file.write_text("prot = 9001\n")
    result = run("config", "validate", "--config", file)
    assert result.exit_code == 1
    assert "prot" in result.stderr
    file.write_text("port = \n")
    refused(run("config", "validate", "--config", file), "not TOML")
    refused(run("config", "validate", "--config", tmp_path / "none.toml"), "none.toml")
    monkeypatch.setenv("WHISPERGPT_PORT", "high")
    monkeypatch.setenv("WHISPERGPT_CONFIG", "")
    refused(run("config", "validate"), "port", "high")
