"""Build the image without a container engine, start it as it is deployed, and hold it to what the documents say.

sudo python -m deploy.image.build_and_try --work build/image [--wheels FOLDER] [--mirror URL]

Writes benchmarks/results/image.json. Exit code 1 when a law is broken: ready in time, no code compiled at the start,
audio that is not silent, the image's user, a file system that nobody changed, no compiler, tests or caches.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from benchmarks.common import RESULTS, ROOT, rounded
from benchmarks.speed.timing import conditions, console, write
from deploy.image.build import NAME, Buildah, build, let_go, make_base
from deploy.image.container import Container, user_of
from deploy.image.contents import faults, mib_of_parts
from tests.support.live import free_port

SPEECH = ROOT / "examples" / "speech.flac"
SECONDS = 2.0
SILENT = 1e-3  # root mean square of samples from -1 to 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "image", help="for the base and the images, 5 GB")
    parser.add_argument("--wheels", type=Path, help="install from this folder; it is filled with what it lacks")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian, for the base")
    parser.add_argument("--built", action="store_true", help="try the image that is there")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--ready-within", type=float, default=10.0, help="seconds that a start may take")
    parser.add_argument("--out", type=Path, default=RESULTS / "image.json")
    return parser.parse_args()


def continued(port: int) -> dict[str, Any]:
    """A continuation of the example, and what was heard."""
    begin = time.monotonic()
    answer = httpx.post(
        f"http://127.0.0.1:{port}/continue",
        files={"file": ("speech.flac", SPEECH.read_bytes())},
        data={"seconds": str(SECONDS), "seed": "7", "response_format": "wav"},
        timeout=120,
    ).raise_for_status()
    seconds = time.monotonic() - begin
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    return {"seconds": seconds, "made_seconds": len(samples) / rate, "rms": float(np.sqrt(np.mean(samples**2)))}


def changed(root: Path, since: float) -> list[str]:
    """Files of the image that somebody has written since."""
    places = (Path(parent, name) for parent, _, names in os.walk(root) for name in names)
    return [str(path.relative_to(root)) for path in places if path.lstat().st_ctime > since]


def tried(root: Path, config: dict[str, Any], within: float) -> tuple[dict[str, Any], list[str]]:
    """One start of the server: its figures, and the laws that it broke."""
    broken = []
    since = time.time()
    with tempfile.TemporaryFile("w+b") as log:
        container = Container(root, config, free_port(), log)
        try:
            ready = container.until_ready(max(within, 120.0))
            computed = container.processor_seconds()
            status, heard, healthy = container.status(), continued(container.port), container.healthy()
            code, stopped = container.stop()
            said = container.said()
        finally:
            container.close()
    if ready > within:
        broken.append(f"ready after {ready:.1f} s")
    if "compiled anew" in said:
        broken.append("machine code was compiled at the start:\n" + said)
    if heard["rms"] < SILENT or abs(heard["made_seconds"] - SECONDS) > 0.05:
        broken.append(f"a continuation of {SECONDS} s was asked for: {heard}")
    wanted = str(user_of(root, config)[0])
    if status["Uid"].split() != [wanted] * 4 or int(status["CapEff"], 16) or int(status["CapBnd"], 16):
        broken.append(f"not the image's user, or with capabilities: {status['Uid']}, {status['CapBnd']}")
    if not healthy:
        broken.append("the image's HEALTHCHECK fails on a server that is ready")
    if code:
        broken.append(f"exit status {code} after SIGTERM:\n{said}")
    broken += [f"written while it ran: {name}" for name in changed(root, since)]
    figures = {
        "ready_seconds": ready, "ready_processor_seconds": computed, "continue": heard, "stop_seconds": stopped,
        "load": os.getloadavg()[0], "resident": status["VmHWM"],
    }  # fmt: skip
    return figures, broken


def main() -> int:
    """Build, look, start."""
    given = arguments()
    if os.geteuid() != 0:
        sys.exit("only root can build the image and set its user: sudo, or a user namespace")
    at = conditions()
    given.work.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(given.work.resolve())
    if given.built:
        seconds = json.loads(given.out.read_text())["build_seconds"] if given.out.exists() else {}
    else:
        if given.wheels is not None:
            given.wheels.mkdir(parents=True, exist_ok=True)
        seconds = {"base": make_base(buildah, given.mirror), "build": build(buildah, given.wheels)}
    config = buildah.config(NAME)
    starts: list[dict[str, Any]] = []
    with buildah.mounted(NAME) as root:
        mib, broken = mib_of_parts(root), faults(root, user_of(root, config)[0])
        for _ in range(given.starts):
            figures, more = tried(root, config, given.ready_within)
            console.print(figures)
            starts.append(figures)
            broken += more
    let_go(buildah)
    at |= {"starts": given.starts, "made_seconds": SECONDS, "niceness": os.nice(0)}
    report = {
        "build_seconds": seconds,
        "mib": mib,
        "ready_seconds": statistics.median(start["ready_seconds"] for start in starts),
        "starts": starts,
        "broken": broken,
    }
    write(given.out, at, report)
    print(json.dumps(rounded(report), indent=1))
    print(f"{len(broken)} laws broken" if broken else "the image holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
