"""What `make image-test` looks for is found where it is; the building itself needs root and a quarter of an hour."""

import os
from pathlib import Path

import pytest

from deploy.image.build import argument, base_of_the_dockerfile
from deploy.image.container import user_of, wrapped
from deploy.image.contents import faults, mib_of_parts

UID = 10001
SITE = "opt/venv/lib/python3.11/site-packages"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The file system of a small image that breaks no law."""
    for name in ("usr/bin/python3", "usr/bin/asn1-as-text.py", f"{SITE}/torch/lib/libtorch.so", "srv/app/main.py",
                 "srv/.numba/step.nbc"):  # fmt: skip
        file(tmp_path, name)
    file(tmp_path, "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nserver:x:10001:998::/srv:/usr/sbin/nologin\n")
    return tmp_path


def file(root: Path, name: str, mode: int = 0o644) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    path.chmod(mode)
    return path


def test_a_clean_image_has_no_fault(root: Path) -> None:
    assert faults(root, UID) == []


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        ("usr/bin/gcc", 0o755, "a compiler"),
        ("usr/bin/x86_64-linux-gnu-gcc-12", 0o755, "a compiler"),
        (f"{SITE}/numba/tests/test_a.py", 0o644, "tests"),
        ("srv/tests/test_a.py", 0o644, "tests in /srv"),
        ("root/.cache/pip/a", 0o600, "a cache"),
        ("var/lib/apt/lists/a", 0o644, "a cache"),
        (f"{SITE}/pip/__init__.py", 0o644, "pip in the venv"),
        ("srv/app/open.py", 0o666, "the server may change srv/app/open.py"),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_a_fault_is_told(root: Path, name: str, mode: int, told: str) -> None:
    file(root, name, mode)
    (found,) = faults(root, UID)
    assert found.startswith(told)


def test_what_the_server_owns_it_may_change_but_for_the_compiled_code(root: Path) -> None:
    assert any("srv/app/main.py" in fault for fault in faults(root, os.getuid()))
    assert not any(".numba" in fault for fault in faults(root, os.getuid()))


def test_sizes_add_up(root: Path) -> None:
    mib = mib_of_parts(root, at_least=0.0)
    assert mib["torch"] == pytest.approx(1000 / 2**20)
    assert mib["srv/app"] == pytest.approx(1000 / 2**20)
    assert sum(size for name, size in mib.items() if name != "all") == pytest.approx(mib["all"])


def test_a_command_runs_as_the_images_user_without_anything_more(root: Path) -> None:
    config = {"User": str(UID), "Env": ["PATH=/opt/venv/bin", "WHISPERGPT_PORT=8000"], "WorkingDir": "/srv"}
    assert user_of(root, config) == (UID, 998)
    command = wrapped(root, config, ["whisper-gpt", "serve"], WHISPERGPT_PORT="9")
    text = " ".join(command)
    assert f"--ro-bind {root} /" in text and "--bind" not in text
    assert "--setenv WHISPERGPT_PORT 9" in text and "8000" not in text
    assert "--reuid=10001 --regid=998 --clear-groups --bounding-set=-all" in text
    assert command[-2:] == ["whisper-gpt", "serve"]


def test_the_stand_in_is_of_the_dockerfiles_base() -> None:
    assert base_of_the_dockerfile() == f"docker.io/library/python:{argument('PYTHON_VERSION')}-slim-bookworm"
