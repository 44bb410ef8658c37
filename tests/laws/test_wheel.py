"""What `pip install .` installs is a server that serves: the weights come along, and are found without a checkout.

Nothing is downloaded: the wheel goes into an environment of its own, and all it depends on is read from the tests' own.
"""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.laws.test_readme import check_audible
from tests.support.live import free_port

ROOT = Path(__file__).parents[2]
WEIGHTS = {f"model/weights/default/{path.name}" for path in (ROOT / "weights" / "default").iterdir()}
SOURCES = ("app", "model", "weights", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # tarfile, setuptools


def built(kind: str, source: Path, out: Path) -> Path:
    """The wheel or sdist that the build backend makes of a folder."""
    code = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": ""}
    made = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, env=environment, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built from, without what building leaves behind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", checkout, tmp_path_factory.mktemp("wheel"))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_carries_the_weights_and_nothing_beside_the_packages(wheel: Path) -> None:
    names = names_in(wheel)
    assert names >= WEIGHTS
    assert {name.split("/")[0] for name in names} == {"app", "model"}
    sources = {
        path.relative_to(ROOT).as_posix() for package in ("app", "model") for path in (ROOT / package).rglob("*.py")
    }
    assert names >= sources
    assert any(name.startswith("app/static/") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        for name in WEIGHTS:
            assert archive.read(name) == (ROOT / name.removeprefix("model/")).read_bytes(), name


@pytest.mark.slow
def test_a_wheel_of_the_sdist_is_the_same(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    with tarfile.open(built("sdist", checkout, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    (tmp_path / "wheel").mkdir()
    assert names_in(built("wheel", folder, tmp_path / "wheel")) == names_in(wheel)


@pytest.mark.slow
def test_an_installed_wheel_serves_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """In a new environment, with nothing of the checkout on its path: a real continuation with the carried weights."""
    fresh, empty, log = tmp_path / "venv", tmp_path / "empty", tmp_path / "log"
    venv.create(fresh, symlinks=True)
    empty.mkdir()
    python = fresh / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    (own,) = fresh.glob("lib/python*/site-packages")
    # .pth files that lie there are not read again, so the tests' editable install stays out
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("WHISPERGPT_", "PYTHON", "NUMBA_"))
    } | {"PATH": f"{fresh / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(fresh)}
    where = (
        "import app, model, model.default_bundle as found; print(app.__file__, model.__file__, found.DEFAULT_BUNDLE)"
    )
    told = subprocess.run([python, "-c", where], cwd=empty, env=environment, check=True, capture_output=True, text=True)
    assert all(path.startswith(str(own)) for path in told.stdout.split()), told.stdout

    port = free_port()
    with log.open("w") as out:
        command = [str(fresh / "bin" / "whisper-gpt"), "serve", "--port", str(port), "--drain-grace-seconds", "0"]
        server = subprocess.Popen(command, cwd=empty, env=environment, stdout=out, stderr=out)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                end = time.monotonic() + 600  # it compiles: nothing of the package is in a cache yet
                while True:
                    try:
                        assert client.get("/readyz").status_code == 200
                        break
                    except httpx.TransportError:
                        assert server.poll() is None and time.monotonic() < end, log.read_text()
                        time.sleep(0.2)
                answer = client.post(
                    "/continue",
                    files={"file": ("speech.flac", (ROOT / "examples" / "speech.flac").read_bytes())},
                    data={"seconds": "1", "response_format": "wav"},
                )
                assert answer.status_code == 200, answer.text
                (tmp_path / "made.wav").write_bytes(answer.content)
                check_audible(tmp_path / "made.wav", 1.0)
                assert "text/html" in client.get("/").headers["content-type"], "the page is carried, too"
        finally:
            server.terminate()
            server.wait(60)
    assert not re.search("Traceback", log.read_text())
    assert list(empty.iterdir()) == []
