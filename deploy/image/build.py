"""The Dockerfile as it stands, built by buildah without a container engine, on a base that debootstrap makes.

Needs root, and Debian's packages buildah and debootstrap. Nothing is written outside of the work folder: buildah keeps
its images there, too. The base stands in for python:3.11-slim-bookworm and differs in one thing that matters here: its
Python is Debian's, the same release of the language.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
NAME = "localhost/whisper-gpt:tried"
STAND_IN = """
FROM scratch
COPY . /
RUN ln -s python3 /usr/bin/python && rm -rf /var/cache/apt /var/lib/apt/lists
CMD ["python3"]
"""


def argument(name: str) -> str:
    """The default of an ARG of the Dockerfile."""
    found = re.search(rf"^ARG {name}=(\S+)$", DOCKERFILE.read_text(), re.M)
    assert found, f"the Dockerfile has no ARG {name}"
    return found[1]


def base_of_the_dockerfile() -> str:
    """Its full name, as buildah looks for it."""
    return f"docker.io/library/python:{argument('PYTHON_VERSION')}-slim-bookworm"


@dataclass(frozen=True)
class Buildah:
    """buildah with images of its own, in a folder of the work folder."""

    work: Path

    def command(self, *arguments: str) -> list[str]:
        store = self.work / "images"
        return ["buildah", "--root", str(store), "--runroot", str(self.work / "run"), *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> None:
        """Shows what it says. Raises CalledProcessError when it fails."""
        subprocess.run(self.command(*arguments), check=True, input=stdin, text=True)

    def ask(self, *arguments: str) -> str:
        return subprocess.run(self.command(*arguments), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def has(self, image: str) -> bool:
        asked = subprocess.run(self.command("inspect", "--type", "image", image), check=False, capture_output=True)
        return asked.returncode == 0

    def config(self, image: str) -> dict[str, Any]:
        """What the image says of how it is run, by the names of Docker's format: User, Env, Entrypoint, Healthcheck."""
        config: dict[str, Any] = json.loads(self.ask("inspect", "--type", "image", image))["Docker"]["config"]
        return config

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The file system of the image, as a folder."""
        container = self.ask("from", "--pull-never", image)
        try:
            yield Path(self.ask("mount", container))
        finally:
            self.ask("rm", container)


def let_go(buildah: Buildah) -> None:
    """The storage stays mounted on itself after buildah has ended: without this nobody could remove the work folder."""
    storage = buildah.work / "images" / "overlay"
    if storage.is_mount():
        subprocess.run(["umount", str(storage)], check=True)


def make_base(buildah: Buildah, mirror: str) -> float:
    """The stand-in, if it is not there yet; the seconds that it took."""
    begin = time.monotonic()
    image = base_of_the_dockerfile()
    if not buildah.has(image):
        folder = buildah.work / "base"
        if not (folder / "usr/bin/python3").exists() or (folder / "debootstrap").exists():  # or it was broken off
            subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)
            packages = "ca-certificates,python3,python3-venv,python3-pip"
            command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder), mirror]
            subprocess.run(command, check=True)
        buildah.run("bud", "--isolation", "chroot", "--tag", image, "--file", "-", str(folder), stdin=STAND_IN)
    return time.monotonic() - begin


def fill(wheels: Path) -> None:
    """Every wheel that the Dockerfile installs, by this machine's pip and its configuration, so that the build asks no
    index; what is there already is kept.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    torch = argument("TORCH_VERSION")
    if not list(wheels.glob(f"torch-{torch}*.whl")):
        index = argument("TORCH_INDEX")
        subprocess.run([*pip, "--retries", "0", "--extra-index-url", index, f"torch=={torch}+cpu"], check=True)
    subprocess.run([*pip, "--require-hashes", "--requirement", str(ROOT / "requirements.lock")], check=True)


def build(buildah: Buildah, wheels: Path | None, more: Sequence[str] = ()) -> float:
    """The image, by the name ``NAME``; the seconds that it took.

    wheels: a folder to install from instead of the indexes. It is mounted with pip's configuration while the image is
    built, and is not part of it. more: further arguments of `buildah bud`.
    """
    begin = time.monotonic()
    mounts: list[str] = []
    if wheels is not None:
        fill(wheels)
        configuration = buildah.work / "pip.conf"
        configuration.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        mounts = [
            "--volume",
            f"{wheels.resolve()}:/wheels:ro",
            "--volume",
            f"{configuration.resolve()}:/etc/pip.conf:ro",
        ]
    # docker: OCI's format has no HEALTHCHECK
    buildah.run("bud", "--isolation", "chroot", "--format", "docker", "--pull-never", *mounts, *more,
                "--tag", NAME, "--file", str(DOCKERFILE), str(ROOT))  # fmt: skip
    return time.monotonic() - begin
