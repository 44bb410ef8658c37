"""A server in the file system of an image, held as our compose file holds it, without a container engine.

Read-only but for /tmp, no capabilities, no new privileges, the image's own user, command and environment, process 1 of
its own process namespace. bubblewrap and util-linux's setpriv do it. The network is this machine's: the server is told
to listen on 127.0.0.1 alone.
"""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

STOP_SECONDS = 45.0  # from SIGTERM to the end: more than drain_seconds and 5 s


def user_of(root: Path, config: dict[str, Any]) -> tuple[int, int]:
    """User and group of the image's USER, as an engine finds them: the group stands in its /etc/passwd."""
    uid = int(config["User"])
    lines = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    return uid, next((int(fields[3]) for fields in lines if int(fields[2]) == uid), 0)


def wrapped(root: Path, config: dict[str, Any], command: Sequence[str], *flags: str, **more: str) -> list[str]:
    """A command inside, as a command outside. ``more`` is added to the environment."""
    uid, gid = user_of(root, config)
    environment = dict(entry.split("=", 1) for entry in config["Env"]) | more
    set_up = [word for name, value in environment.items() for word in ("--setenv", name, value)]
    return [
        "bwrap", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm",
        "--perms", "1777", "--tmpfs", "/tmp", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent",
        "--as-pid-1", "--clearenv", *set_up, "--chdir", config["WorkingDir"],
        "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP", *flags,
        "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
        "--no-new-privs", *command,
    ]  # fmt: skip


class Container:
    """The image's own command, running."""

    def __init__(self, root: Path, config: dict[str, Any], port: int, log: IO[bytes]) -> None:
        self.root, self.config, self.port, self.log = root, config, port, log
        self.told = {"WHISPERGPT_PORT": str(port), "WHISPERGPT_HOST": "127.0.0.1"}
        read, write = os.pipe()
        command = wrapped(root, config, [*config["Entrypoint"], *config["Cmd"]], "--info-fd", str(write), **self.told)
        self.begin = time.monotonic()
        self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, pass_fds=[write])
        os.close(write)
        with os.fdopen(read) as told:
            self.pid: int = json.load(told)["child-pid"]

    def said(self) -> str:
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode("utf-8", "replace")

    def until_ready(self, within: float) -> float:
        """Seconds from the start until /readyz answers 200. Raises RuntimeError with what it said when it does not."""
        while time.monotonic() < self.begin + within:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.said()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                    return time.monotonic() - self.begin
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"not ready within {within:.0f} s:\n{self.said()}")

    def healthy(self) -> bool:
        """What the image's HEALTHCHECK says, asked as an engine asks it: in the container, as its user."""
        kind, *test = self.config["Healthcheck"]["Test"]
        command = test if kind == "CMD" else ["/bin/sh", "-c", *test]
        return subprocess.run(wrapped(self.root, self.config, command, **self.told), check=False).returncode == 0

    def status(self) -> dict[str, str]:
        """Of process 1, as the kernel tells it."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def processor_seconds(self) -> float:
        """What process 1 has computed so far, all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)

    def stop(self) -> tuple[int, float]:
        """SIGTERM, as an engine sends it: exit status, and seconds until it came."""
        begin = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(STOP_SECONDS), time.monotonic() - begin

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # --die-with-parent takes the server with it
            self.process.wait(10)
