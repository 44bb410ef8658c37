"""Ray on this machine: a cluster of nodes, the server on it, and its replicas as processes. Linux alone."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.speed.processes import descendants
from tests.support.live import free_port
from tests.support.waiting import HANG_SECONDS, until

ASKERS = 6
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # a cluster of this machine's own, behind 127.0.0.1
    "RAY_worker_niceness": "0",  # Ray's 15 would wait for whatever else this machine does
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # else a replica of another node gets what is refused here
    "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}


@contextmanager
def cluster(nodes: int = 2, cpus: float = 1) -> Iterator[Any]:
    """So many nodes with so many cores each; this process is connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=options)
    try:
        for _ in range(nodes - 1):
            made.add_node(**options)
        ray.init(made.address, log_to_driver=False)
        try:
            yield made
        finally:
            ray.shutdown()
    finally:
        made.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@dataclass(frozen=True)
class Told:
    """What one replica's metrics say; ``started`` tells replicas apart."""

    started: float
    text: str

    def value(self, name: str) -> float:
        found = re.search(rf"^whispergpt_{re.escape(name)} (\S+)$", self.text, re.M)
        return float(found[1]) if found else 0.0


class OnRay:
    """The server behind Ray's proxy, redeployed as a test wants it."""

    def __init__(self, bundle: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = {"bundle": [str(bundle)], "threads": 1, "slots": 2, "max_seconds": 1000, "drain_seconds": 240,
                          "decoder_processes": False}  # fmt: skip
        self._askers = ThreadPoolExecutor(ASKERS)
        self.client = httpx.Client(base_url=self.url, timeout=HANG_SECONDS)

    def file(self, settings: dict[str, Any] | None = None, **config: Any) -> Any:
        from deploy.ray_config import RayFile

        replicas = {"replicas": {"min": 2, "max": 2}}
        args = replicas | {"settings": self._settings | (settings or {}), "health_seconds": 1} | config
        # the nodes have one address, so there is room for one proxy's port
        return RayFile.model_validate(
            {"proxy_location": "HeadOnly", "http_options": {"port": self.port}, "applications": [{"args": args}]}
        )

    def deploy(self, settings: dict[str, Any] | None = None, **config: Any) -> None:
        """Returns when all replicas are of this kind."""
        from deploy.ray_serve import start

        start(self.file(settings, **config))

    def states(self) -> dict[str, int]:
        """How many replicas are in which state."""
        from ray import serve

        (deployment,) = serve.status().applications["whisper-gpt"].deployments.values()
        return {str(getattr(name, "value", name)): count for name, count in deployment.replica_states.items()}

    def running(self) -> int:
        return self.states().get("RUNNING", 0)

    def pids(self) -> list[int]:
        """Of the replicas, by the name that Ray gives their processes."""
        found = []
        for pid in descendants(os.getpid()):
            with suppress(OSError):
                if b"ray::ServeReplica:" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def told(self, replicas: int = 2) -> dict[float, Told]:
        """The metrics of so many replicas.

        Ray chooses who answers, and by preference who has less in hand: so several ask at a time, until all have told.
        """
        found: dict[float, Told] = {}

        def ask(_: int) -> None:
            with suppress(httpx.TransportError):
                text = httpx.get(f"{self.url}/metrics", timeout=HANG_SECONDS).text
                started = re.search(r"^process_start_time_seconds (\S+)$", text, re.M)
                if started:
                    found[float(started[1])] = Told(float(started[1]), text)

        def all_of_them() -> bool:
            list(self._askers.map(ask, range(ASKERS)))
            return len(found) >= replicas

        until(all_of_them, lambda: f"{sorted(found)} of {replicas}", 0.02)
        return found

    def total(self, name: str, replicas: int = 2) -> float:
        return sum(one.value(name) for one in self.told(replicas).values())

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in self.pids(), pause=0.05)


def start_time(pid: int) -> float:
    """As Prometheus' client tells it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return float(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Streaming(threading.Thread):
    """A client of a continuation as bare PCM, which reads to the end."""

    def __init__(self, url: str, clip: bytes, seconds: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._url, self._clip, self._form = url, clip, {
            "seconds": str(seconds), "seed": str(seed), "stream": "true", "response_format": "pcm", "store": "false",
        }  # fmt: skip
        self.status, self.size, self.broken = 0, 0, ""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream(
                "POST", f"{self._url}/continue", files={"file": ("a", self._clip)}, data=self._form,
                timeout=HANG_SECONDS,
            ) as answer:  # fmt: skip
                self.status = answer.status_code
                for piece in answer.iter_raw():
                    self.size += len(piece)
                    if self.size:
                        self.begun.set()
        except httpx.TransportError as error:
            self.broken = type(error).__name__
        self.begun.set()
