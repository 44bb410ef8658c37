"""What the processes of one server have in common: a folder in memory, and who they are.

Files alone, and no locks: a process that is stopped in the middle of something holds up no other. The folder is made by
the supervisor (`app.cli.supervisor`), which removes it at the end.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.files import put_json

MEMORY = Path("/dev/shm")  # Linux; elsewhere, and where it is too small, the folder for temporary files
PREFIX = "whispergpt-"
LOCK = "lock"  # held for as long as a process of the server lives: what nobody holds was left by a kill
BESIDE_BYTES = 16 * 2**20  # for metrics and limits, beside what is kept to go on from


@dataclass(frozen=True)
class Shared:
    """The folder, as process ``index`` of ``count`` sees it."""

    folder: Path
    index: int
    count: int

    @property
    def prompts(self) -> Path:
        """What is kept to go on from."""
        return self.folder / "prompts"

    @property
    def metrics(self) -> Path:
        """Figures of each process, by its index: another in its place counts on."""
        return self.folder / "metrics"

    @property
    def limits(self) -> Path:
        """What clients have asked for."""
        return self.folder / "limits.sqlite"

    @property
    def workers(self) -> "Workers":
        """Who they are now."""
        return Workers(self.folder / "workers.json")


@dataclass(frozen=True)
class Workers:
    """The processes that run, and what the others have left to be counted; the supervisor alone writes it."""

    path: Path

    def put(self, pids: Sequence[int], ended_cpu_seconds: float) -> None:
        put_json(self.path, {"pids": list(pids), "ended_cpu_seconds": ended_cpu_seconds})

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


def made_folder(prompts_bytes: int) -> Path:
    """A folder of the server's own, which nobody else may read. Raises OSError.

    In shared memory if that has room for what is kept to go on from, else among the temporary files.
    """
    wanted = prompts_bytes + BESIDE_BYTES
    roots = [root for root in (MEMORY, Path(tempfile.gettempdir())) if os.access(root, os.W_OK)]
    root = next((root for root in roots if shutil.disk_usage(root).free >= wanted), Path(tempfile.gettempdir()))
    for one in roots:
        remove_left(one)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=f".{PREFIX}"))
    hold(folder)
    for name in ("prompts", "metrics"):
        (folder / name).mkdir()
    # only now by the name under which others look for what was left: nobody takes it for that before it is held
    return folder.rename(root / folder.name.removeprefix("."))


def hold(folder: Path) -> int:
    """This process lives by the folder; whatever ends it lets go. A descriptor, which lets go when it is closed."""
    import fcntl  # Windows has none

    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def remove_left(root: Path) -> None:
    """Removes the folders of servers all of whose processes were killed."""
    import fcntl

    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, or gone meanwhile
            if folder.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def forget_halves(folder: Path, pid: int) -> None:
    """Removes what a process had begun to write when it was killed (`model.files.whole_file`)."""
    for part in folder.glob(f".*.{pid}.part"):
        part.unlink(missing_ok=True)
