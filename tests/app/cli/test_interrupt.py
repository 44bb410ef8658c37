"""Ctrl-C at any moment: exit code 130, one line at most, no half-written file; and files that cannot be written."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import soundfile

from app.cli import interrupt
from app.cli.interrupt import STOPPED, handled, stop_at_once
from app.cli.output import check_folder, check_output, whole_file
from app.errors import UserError
from tests.support.waiting import HANG_SECONDS, until

SPEECH = Path(__file__).parents[3] / "examples" / "speech.flac"


@pytest.fixture(scope="module")
def bundle(saved_bundle: Path) -> Path:
    return saved_bundle


def started(*arguments: object, folder: Path, first: str = "pass") -> subprocess.Popen[str]:
    """A command as a terminal starts it: Ctrl-C is not ignored, whatever this process does with it.

    ``first``: what its process does before it begins.
    """
    code = f"import sys; {first}; from app.cli.__main__ import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(SPEECH.parents[1]), "WHISPERGPT_CONFIG": ""},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def stopped(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=HANG_SECONDS)
    assert running.returncode == STOPPED, told
    assert told == "stopped\n"


TOLD_WHEN = """sys.addaudithook(
    lambda event, given: event == '{event}' and str(given[0]).endswith('{name}') and print('now', flush=True))"""


@pytest.mark.parametrize(
    ("event", "name"),
    [("import", "typer"), ("import", "torch"), ("import", "numba"), ("open", "decoder.safetensors")],
)  # fmt: skip
def test_in_the_first_seconds(bundle: Path, tmp_path: Path, event: str, name: str) -> None:
    """While modules are imported, and while weights are loaded."""
    command = ("continue", SPEECH, "-o", "out.wav", "--seconds", 3600, "--bundle", bundle)
    running = started(*command, folder=tmp_path, first=TOLD_WHEN.format(event=event, name=name))
    assert running.stdout is not None and running.stdout.readline() == "now\n"
    stopped(running)
    assert list(tmp_path.iterdir()) == []


def test_while_a_stream_is_written(bundle: Path, tmp_path: Path) -> None:
    """What was heard stays, as a file with the right sizes."""
    out = tmp_path / "out.wav"
    running = started("continue", SPEECH, "-o", out, "--stream", "--seconds", 3600, "--bundle", bundle, folder=tmp_path)
    until(lambda: running.poll() is not None or (out.exists() and out.stat().st_size >= 10_000))
    assert running.poll() is None, running.communicate()
    stopped(running)
    assert list(tmp_path.iterdir()) == [out]
    assert soundfile.info(out).frames * 2 + 44 == out.stat().st_size


def test_imports_end_at_once_and_work_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with handled(stop_at_once):
        if before is not signal.SIG_IGN:  # as under nohup, where it must stay ignored
            assert signal.getsignal(signal.SIGINT) is stop_at_once
            with handled(signal.default_int_handler):
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGINT) is stop_at_once
    assert signal.getsignal(signal.SIGINT) == before


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled(stop_at_once):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_end_other_than_ctrl_c_is_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    for code in (0, 1, STOPPED):
        with pytest.raises(SystemExit) as ended:
            interrupt.run(partial(sys.exit, code))
        assert ended.value.code == code
    assert left == [STOPPED]


# files


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"

    def break_off(error: BaseException) -> None:
        with whole_file(out) as part:
            part.write_bytes(b"half")
            raise error

    with pytest.raises(KeyboardInterrupt):
        break_off(KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"before")
    out.chmod(0o640)
    with pytest.raises(UserError, match=r"out\.bin cannot be written: No space left"):
        break_off(OSError(28, "No space left on device"))
    assert out.read_bytes() == b"before"
    link = tmp_path / "link.bin"
    link.symlink_to(out)
    with whole_file(link) as part:
        part.write_bytes(b"after")
    assert link.is_symlink() and out.read_bytes() == b"after" and out.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [link, out]


def test_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert check_output(pipe) == pipe
    with whole_file(pipe) as part:
        assert part == pipe
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("name", "words"),
    [(".", "is a folder; name a file in it"), ("no/out.wav", "the folder .*no does not exist"),
     ("file/out.wav", "is no folder")],
)  # fmt: skip
def test_what_cannot_be_written_is_told_before(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        check_output(tmp_path / name)


def test_a_folder_that_takes_no_file_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions cannot be taken from root, who runs these tests in a container: so the file system refuses."""

    def refuse(**where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("app.cli.output.tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"out\.wav cannot be written: Permission denied"):
        check_output(tmp_path / "out.wav")
    with pytest.raises(UserError, match="run cannot be written: Permission denied"):
        check_folder(tmp_path / "a" / "run")


def test_folders_that_can_be_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="a is a file; name a folder"):
        check_folder(tmp_path / "a" / "b")
