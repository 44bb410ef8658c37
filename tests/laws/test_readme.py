"""The commands of the README and of the API guide, as written, against a real server.

Blocks marked `sh` and `python` are executed; what they leave behind is checked for what the README promises. The bundle
is `weights/default`, or the folder that WHISPERGPT_TEST_BUNDLE names.
"""

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.live import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README, "docs/api.md": (ROOT / "docs" / "api.md").read_text()}
BLOCKS = {name: re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.M | re.S) for name, text in PAGES.items()}


def bundle_folder() -> Path:
    return Path(os.environ.get("WHISPERGPT_TEST_BUNDLE", ROOT / "weights" / "default")).absolute()


def environment() -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("WHISPERGPT_", "MAKE", "MFLAGS"))
    }
    return inherited | {"PYTHONPATH": str(ROOT), "WHISPERGPT_BUNDLE": str(bundle_folder()), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that looks like the clone to the commands."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", path / "examples")
    return path


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real server on a free port of 127.0.0.1, for as long as the module's tests run."""
    if not (bundle_folder() / "config.json").exists():
        pytest.fail(f"no bundle in {bundle_folder()}: commit weights/default, or set WHISPERGPT_TEST_BUNDLE to one")
    free = free_port()
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as out:
        command = ["make", "serve", f"PORT={free}"]
        if not (ROOT / ".venv" / ".installed").exists():  # tests of a checkout that `make install` has not seen
            command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(free)]
        server = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_ready(free):
                assert server.poll() is None, f"the server stopped:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"not ready in {START_SECONDS} s:\n{log.read_text()}"
                time.sleep(0.2)
            yield free
            assert server.poll() is None, f"the server died:\n{log.read_text()}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # make and the server
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    assert "Traceback" not in log.read_text()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def as_written(text: str, port: int) -> str:
    """The command with this test's port and interpreter in place of the README's."""
    text = text.replace("localhost:8000", f"127.0.0.1:{port}")
    return text.replace(".venv/bin/whisper-gpt", f"{shlex.quote(sys.executable)} -m app.cli.main")


def run(kind: str, text: str, folder: Path, port: int) -> str:
    """Runs a block; returns what it printed. Fails with its output when it does not succeed."""
    shell = ["bash", "-euc"] if kind == "sh" else [sys.executable, "-c"]
    command = [*shell, as_written(text, port)]
    done = subprocess.run(
        command, cwd=folder, env=environment(), check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def block_with(*parts: str) -> tuple[str, str]:
    blocks = [block for own in BLOCKS.values() for block in own]
    (found,) = [(kind, text) for kind, text in blocks if all(part in text for part in parts)]
    return found


def check_audible(file: Path | io.BytesIO, seconds: float) -> None:
    samples, rate = soundfile.read(file, dtype="float32")
    assert rate == 24_000
    assert len(samples) == round(seconds * rate)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() < 1.0, "clipped"
    assert np.sqrt(np.mean(samples**2)) > 1e-4, "silent"


def test_json_continuation_is_what_the_readme_says(folder: Path, port: int) -> None:
    command = block_with("curl", "-o continuation.json")
    run(*command, folder, port)
    body = json.loads((folder / "continuation.json").read_text())
    assert body["object"] == "audio.continuation"
    assert (body["seed"], body["sample_rate"], body["frame_rate"]) == (7, 24_000, 75)
    assert body["prompt"]["tokens"] == 475
    assert body["prompt"]["seconds"] == pytest.approx(475 / 75)
    (choice,) = body["choices"]
    assert len(choice["tokens"]) == len(choice["logprobs"]) == 225
    assert choice["finish_reason"] == "length"
    sound = base64.b64decode(choice["audio"]["data"])
    check_audible(io.BytesIO(sound), 3.0)
    run(*command, folder, port)
    again = json.loads((folder / "continuation.json").read_text())["choices"][0]
    assert base64.b64decode(again["audio"]["data"]) == sound, "the same seed gives the same bytes"
    assert (again["tokens"], again["logprobs"]) == (choice["tokens"], choice["logprobs"])


def test_sound_file_holds_prompt_and_continuation(folder: Path, port: int) -> None:
    run(*block_with("curl", "-o continuation.flac"), folder, port)
    prompt, rate = soundfile.read(ROOT / "examples" / "music.flac", dtype="float32")
    samples, made_rate = soundfile.read(folder / "continuation.flac", dtype="float32")
    assert made_rate == rate
    assert len(samples) / rate == pytest.approx(len(prompt) / rate + 5.0, abs=0.06)  # the joint may be crossfaded
    assert np.abs(samples[: rate * 7] - prompt[: rate * 7]).max() < 1e-3, "the prompt's own samples"


def test_stream_is_a_sound_file(folder: Path, port: int) -> None:
    run(*block_with("curl", "-o streamed.opus"), folder, port)
    check_audible(folder / "streamed.opus", 3.0)
    whole = ["curl", "-sS", "-F", "file=@examples/speech.flac", "-F", "seconds=3", "-F", "seed=7"]
    run(
        "sh",
        shlex.join([*whole, "-F", "response_format=opus", "localhost:8000/continue", "-o", "whole.opus"]),
        folder,
        port,
    )
    assert (folder / "streamed.opus").read_bytes() == (folder / "whole.opus").read_bytes()


def test_events_end_with_the_numbers(folder: Path, port: int) -> None:
    *deltas, done = run(*block_with("curl", "stream=true localhost:8000/continue"), folder, port).strip().split("\n\n")
    assert deltas and all(one.startswith("event: audio.delta\n") for one in deltas)
    name, data = done.split("\n")
    assert name == "event: audio.done"
    assert len(json.loads(data.removeprefix("data: "))["choices"][0]["tokens"]) == 225


def test_parts_of_a_kept_prompt_are_the_whole(folder: Path, port: int) -> None:
    run(*block_with("curl", "/v1/audio/prompts"), folder, port)
    whole = ["curl", "-sS", "-F", "file=@examples/speech.flac", "-F", "seconds=6", "-F", "seed=7"]
    run("sh", shlex.join([*whole, "localhost:8000/continue", "-o", "whole.json"]), folder, port)
    bodies = [json.loads((folder / f"{name}.json").read_text()) for name in ("first", "second", "whole")]
    first, second, one = (body["choices"][0] for body in bodies)
    assert first["tokens"] + second["tokens"] == one["tokens"] and len(one["tokens"]) == 450
    assert bodies[1]["prompt"]["tokens"] == 475 + 225


def test_scores(folder: Path, port: int) -> None:
    body = json.loads(run(*block_with("curl", "file=@examples/music.flac localhost:8000/score"), folder, port))
    assert body["object"] == "audio.score"
    assert [result["tokens"] for result in body["results"]] == [475, 562]
    assert all(np.isfinite(result["nll"]) for result in body["results"])


def test_labels_of_a_scan(folder: Path, port: int) -> None:
    run(*block_with("curl", "-o labels.txt"), folder, port)
    labels = [line.split("\t") for line in (folder / "labels.txt").read_text().splitlines()]
    assert [float(start) for start, _, _ in labels] == pytest.approx(np.arange(12) * 38 / 75, abs=1e-5)
    assert all(float(text) > 0 for _, _, text in labels)


def test_python_example(folder: Path, port: int) -> None:
    printed = run(*block_with("httpx.post"), folder, port)
    assert printed.startswith("225 tokens, ")
    check_audible(folder / "continuation.wav", 3.0)


def test_command_line(folder: Path, port: int) -> None:
    (folder / "continuation.wav").unlink(missing_ok=True)
    printed = run(*block_with("whisper-gpt continue", "whisper-gpt score"), folder, port)
    check_audible(folder / "continuation.wav", 3.0)
    assert "speech.flac" in printed
    assert "music.flac" in printed


def test_every_block_is_tested() -> None:
    counts = {name: len(own) for name, own in BLOCKS.items()}
    assert counts == {"README.md": 3, "docs/api.md": 6}, "a new block needs a test here"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120
