"""What is in the file system of an image, and what should not be: compilers, tests, caches, what its user may write."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# gcc-12 and x86_64-linux-gnu-gcc are compilers, too
COMPILER = re.compile(
    r"(\w+-linux-gnu-)?(cc|c\+\+|gcc|g\+\+|clang|clang\+\+|cpp|as|ld|make|rustc|go|nvcc|protoc)(-[\d.]+)?"
)
CACHES = ("root/.cache", "var/cache/apt/archives", "var/lib/apt/lists", "srv/.cache", "home", "wheels")
OURS = ("opt", "srv")  # what the Dockerfile puts beside the base


def files_of(root: Path, *folders: str) -> Iterator[Path]:
    """Every file in these folders, links left out."""
    for folder in folders:
        for parent, _, names in os.walk(root / folder):
            yield from (path for name in names if not (path := Path(parent, name)).is_symlink())


def mib_of_parts(root: Path, at_least: float = 5.0) -> dict[str, float]:
    """MiB of each part that the Dockerfile adds (a Python package, a folder of /srv), of the base, and of all."""
    sizes: Counter[str] = Counter()
    for path in files_of(root, "."):
        parts = path.relative_to(root).parts
        inside = parts.index("site-packages") if "site-packages" in parts else 0
        name = "the base" if parts[0] not in OURS else "/".join(parts[inside + 1 :][:1] if inside else parts[:2])
        sizes[name] += path.stat().st_size
    mib = {name: size / 2**20 for name, size in sizes.most_common()}
    return {**{name: size for name, size in mib.items() if size >= at_least}, "all": sum(mib.values())}


def faults(root: Path, uid: int) -> list[str]:
    """What breaks a law of the image, a line each."""
    found = []
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/venv/bin"):
        paths = (root / folder).glob("*")
        found += [f"a compiler: {folder}/{path.name}" for path in paths if COMPILER.fullmatch(path.name)]
    for parent, folders, _ in os.walk(root / "opt"):
        found += [f"tests: {Path(parent, name).relative_to(root)}" for name in folders if name == "tests"]
    found += [f"{name} in /srv" for name in ("tests", "benchmarks", ".git", "docs") if (root / "srv" / name).exists()]
    found += [f"a cache: {path.relative_to(root)}" for path in files_of(root, *CACHES)]
    found += [f"pip in the venv: {path.name}" for path in root.glob("opt/venv/lib/python*/site-packages/pip*")]
    for path in files_of(root, *OURS, "etc", "usr"):
        status = path.stat()
        writable = status.st_mode & 0o002 or (status.st_uid == uid and status.st_mode & 0o200)
        if writable and not path.is_relative_to(root / "srv/.numba"):
            found.append(f"the server may change {path.relative_to(root)}")
    return found
