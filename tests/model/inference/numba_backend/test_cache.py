"""Machine code is loaded from wherever it can be read, kept wherever it can be written, and nothing fails."""

import importlib.util
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from model.inference.numba_backend.cache import KernelCache, log_compilation

ROOT = Path(__file__).parents[4]
NOBODY = 10001
KERNELS = """
from model.inference.numba_backend.jit import compiled


@compiled
def doubled(x):
    return 2 * x
"""
# numba compiles something first: of its modules, none may be readable after the change of user
START = """
import json, logging, os, sys
import numba
from model.inference.numba_backend.cache import log_compilation
from model.inference.numba_backend.jit import compiled

numba.njit(lambda x: 2 * x)(1)
folder, user = sys.argv[1:]
if user != "same":
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("model").addHandler(handler)
logging.getLogger("model").setLevel(logging.INFO)
sys.path.insert(0, folder)
from kernels import doubled

with log_compilation(doubled, "kernel"):
    result = doubled(21)
stats = doubled.stats
hits, misses = sum(stats.cache_hits.values()), sum(stats.cache_misses.values())
print(json.dumps({"result": result, "hits": hits, "misses": misses, "lines": lines}))
"""
Kernel = Callable[[int], int]


def load(folder: Path) -> Any:
    """The kernel of a folder, as a process that starts has it."""
    spec = importlib.util.spec_from_file_location("kernels", folder / "kernels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.doubled


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a kernel that was compiled before, in ``__pycache__``."""
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", "")
    (tmp_path / "kernels.py").write_text(KERNELS)
    assert load(tmp_path)(21) == 42
    return tmp_path


def index(folder: Path) -> Path:
    (found,) = (folder / "__pycache__").glob("*.nbi")
    return found


def said(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What a start logs that calls the folder's kernel; the next start finds it, and logs nothing."""
    for expected in (1, 0):
        kernel = load(folder)
        caplog.clear()
        with caplog.at_level(logging.INFO), log_compilation(kernel, "kernel"):
            assert kernel(21) == 42
        assert len(caplog.records) == expected
        if expected:
            message = caplog.messages[0]
    return message


def test_a_start_loads_what_another_has_compiled(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernel = load(folder)
    with caplog.at_level(logging.INFO), log_compilation(kernel, "kernel"):
        assert kernel(21) == 42
    assert sum(kernel.stats.cache_hits.values()) == 1 and not kernel.stats.cache_misses
    assert not caplog.records


def test_no_cache(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (folder / "__pycache__").iterdir():
        path.unlink()
    message = said(folder, caplog)
    assert message.startswith("the kernel was compiled anew, 0 s: no cache (kept")


def test_another_version_of_numba(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    index(folder).write_bytes(pickle.dumps("0.1.0") + pickle.dumps(b""))
    assert "the cache is of numba 0.1.0" in said(folder, caplog)


def test_another_processor(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with index(folder).open("rb") as file:
        version = pickle.load(file)
        stamp, known = pickle.load(file)
    other = {(sig, ("x86_64", "i486", ""), code): name for (sig, _, code), name in known.items()}
    index(folder).write_bytes(pickle.dumps(version) + pickle.dumps((stamp, other)))
    assert "the cache is for another processor than" in said(folder, caplog)


def test_other_sources(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "kernels.py").write_text(KERNELS + "\n# another line\n")
    assert "the sources have changed" in said(folder, caplog)


def test_sources_that_a_kernel_calls(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of another edition (`jit.EDITION`): it is part of the name."""
    old = index(folder)
    head, tail = old.name.rsplit("_", 1)
    old.rename(old.with_name(f"{head}_0123456789ab-{tail.split('-')[1]}"))
    assert "the sources have changed" in said(folder, caplog)


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_cache_is_made_anew(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    (path,) = (folder / "__pycache__").glob(f"*.{kind}")
    path.write_bytes(path.read_bytes()[:9])
    assert "the cache is damaged" in said(folder, caplog)


def test_what_was_compiled_goes_where_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the first folder would be."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "provided").write_text("")
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path / "provided"))
    kernel = load(tmp_path)
    assert kernel(21) == 42
    assert isinstance(kernel._cache, KernelCache)
    assert kernel._cache.saved == tmp_path / "__pycache__" == index(tmp_path).parent


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach: pytest's own is for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "kernels.py").write_text(KERNELS)
        yield folder
        for path in (folder, folder / "__pycache__"):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)


def start(folder: Path, *, plain: bool = True) -> dict[str, Any]:
    """A process that calls the folder's kernel; as a plain user, to whom permissions apply."""
    user = str(NOBODY) if plain and os.geteuid() == 0 else "same"
    # nor what a run under coverage hands down: its files cannot be written there
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "COVERAGE_"))}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder), user],
        env=environment, cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed["result"] == 42
    return printed


@pytest.mark.skipif(os.name != "posix", reason="needs permissions as POSIX has them")
def test_a_cache_that_can_only_be_read(shared: Path) -> None:
    made = start(shared, plain=False)
    assert (made["hits"], made["misses"]) == (0, 1)
    (shared / "__pycache__").chmod(0o555)
    shared.chmod(0o555)
    assert start(shared) == {"result": 42, "hits": 1, "misses": 0, "lines": []}


@pytest.mark.skipif(os.name != "posix", reason="needs permissions as POSIX has them")
@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o555, "no cache"), (0o000, "the cache cannot be read")],
    ids=["empty", "unreadable"],
)
def test_no_folder_can_be_written(shared: Path, mode: int, reason: str) -> None:
    (shared / "__pycache__").mkdir()
    (shared / "__pycache__").chmod(mode)
    shared.chmod(0o555)
    made = start(shared)
    assert (made["hits"], made["misses"]) == (0, 1)
    (line,) = made["lines"]
    assert f" s: {reason} (not kept: no cache folder can be written)" in line
