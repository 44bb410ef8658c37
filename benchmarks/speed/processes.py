"""Two processes of the server behind one port: what a user notices, and what it costs (docs/decisions/0003).

    python -m benchmarks.speed.processes                          # about 5 minutes (Linux)
    python -m benchmarks.speed.processes --ray RAYS_PYTHON        # and what Ray runs beside Serve and its replicas
    python -m benchmarks.speed.processes --built-alone            # what was built of it, beside figures from before

Each process is the real application with the shipped bundle, on one thread. They share the port in two ways: each has
a socket of its own (SO_REUSEPORT), or all accept from one that their parent has made. Then the same of
`whisper-gpt serve --processes 2`, which does the latter, and has a supervisor. Counts and bytes, no times: those of a
busy machine say little.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import RESULTS, ROOT
from benchmarks.speed.timing import conditions, console, write

WAYS = ("a socket each", "one socket")
CONNECTIONS = 200
LOOPS = 8  # clients that ask and ask again, a new connection each time
SECONDS = 4.0  # for which they do
PATIENCE = 2.0  # after which a client of a stopped process gives up
STREAMS, STREAM_SECONDS = 4, 2.0  # continuations at the same time, for the processor time that they take
MIB = 2.0**20


def own_socket(port: int = 0, shared: bool = True) -> socket.socket:
    made = socket.socket()
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
    made.bind(("127.0.0.1", port))
    return made


def worker(port: int, descriptor: int, threads: int) -> None:
    """Serves until it is ended; each answer tells who gave it."""
    import uvicorn

    from app.main import create_app
    from app.settings import Settings

    app = create_app(Settings(threads=threads, drain_grace_seconds=0, drain_seconds=1))

    async def named(scope: Any, receive: Any, send: Any) -> None:
        async def send_named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-process", str(os.getpid()).encode())]
            await send(message)

        await app(scope, receive, send_named if scope["type"] == "http" else send)

    listener = socket.socket(fileno=descriptor) if descriptor >= 0 else own_socket(port)
    uvicorn.Server(uvicorn.Config(named, log_level="error")).run(sockets=[listener])


class Processes:
    """So many processes that share a port; who ends is replaced when told."""

    def __init__(self, way: str, count: int, threads: int) -> None:
        self._threads = threads
        self.socket = own_socket(shared=way == WAYS[0])
        self.port: int = self.socket.getsockname()[1]
        self._pass = way == WAYS[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.running: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            self.add()
        self.until_ready(count)

    def add(self) -> None:
        descriptor = self.socket.fileno() if self._pass else -1
        command = [sys.executable, "-m", "benchmarks.speed.processes", "--worker", str(self.port), str(descriptor),
                   "--threads", str(self._threads)]  # fmt: skip
        passed = (descriptor,) if self._pass else ()
        self.running.append(subprocess.Popen(command, cwd=ROOT, pass_fds=passed, env=os.environ))

    def until_ready(self, count: int) -> None:
        seen: set[str] = set()
        while len(seen) < count:
            assert all(one.poll() is None for one in self.running), "a process has ended"
            seen |= set(asks(self.url, 20))
            time.sleep(0.5)

    def close(self) -> None:
        for one in self.running:
            one.kill()
            one.wait()
        self.socket.close()


@contextmanager
def processes(way: str, count: int = 2, threads: int = 1) -> Iterator[Processes]:
    made = Processes(way, count, threads)
    try:
        yield made
    finally:
        made.close()


def ask(url: str, path: str = "/livez", **options: Any) -> httpx.Response:
    """Over a connection of its own."""
    with httpx.Client(timeout=options.pop("timeout", 60)) as client:
        return client.request(options.pop("method", "GET"), url + path, **options)


def asks(url: str, count: int) -> Counter[str]:
    """Who answers: over connections of their own, as new clients have them."""
    found: Counter[str] = Counter()
    for _ in range(count):
        try:
            found[ask(url).headers["x-process"]] += 1
        except httpx.TransportError:
            continue
    return found


def under_load(url: str, event: Any) -> dict[str, int]:
    """What becomes of requests while an event happens in their midst."""
    counts: Counter[str] = Counter()
    end = threading.Event()

    def loop() -> None:
        while not end.is_set():
            try:
                counts["answered"] += ask(url, "/v1/models", timeout=PATIENCE).status_code == 200
            except httpx.TimeoutException:
                counts["without an answer in time"] += 1
            except httpx.TransportError:
                counts["cut off"] += 1

    clients = [threading.Thread(target=loop) for _ in range(LOOPS)]
    for one in clients:
        one.start()
    time.sleep(SECONDS / 4)
    event()
    time.sleep(SECONDS)
    end.set()
    for one in clients:
        one.join()
    return dict(counts)


def pss_mib(pid: int) -> float:
    """Memory of a process: its own, and its share of what it has in common with others (Linux)."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def continuations(url: str, clip: bytes) -> float:
    """Asks for several at a time; gives the seconds of audio."""

    async def all_of_them() -> None:
        async def one(seed: int) -> None:
            async with httpx.AsyncClient(timeout=300) as client:
                form = {"seconds": str(STREAM_SECONDS), "seed": str(seed), "store": "false"}
                answer = await client.post(url + "/continue", files={"file": ("a.flac", clip)}, data=form)
                answer.raise_for_status()

        await asyncio.gather(*(one(seed) for seed in range(STREAMS)))

    asyncio.run(all_of_them())
    return STREAM_SECONDS * STREAMS


def cost(count: int, threads: int, clip: bytes) -> dict[str, float]:
    """Memory, and processor time a second of audio, of so many processes with so many threads each."""
    with processes(WAYS[1], count, threads) as made:
        continuations(made.url, clip)  # all have been at work before
        before = sum(cpu_seconds(one.pid) for one in made.running)
        audio = continuations(made.url, clip)
        spent = sum(cpu_seconds(one.pid) for one in made.running) - before
        memory = sum(pss_mib(one.pid) for one in made.running)
    return {"processes": count, "threads": threads, "pss_mib": memory, "cpu_seconds_a_second": spent / audio}


def shared(way: str, clip: bytes) -> dict[str, Any]:
    """What users of two processes notice."""
    with processes(way) as made:
        first, second = made.running
        spread = asks(made.url, CONNECTIONS)
        name = ask(made.url, "/v1/audio/prompts", method="POST", files={"file": ("a.flac", clip)}).json()["id"]
        found = [ask(made.url, f"/v1/audio/prompts/{name}").status_code for _ in range(40)]
        told = {re.findall(r"^whispergpt_requests_total{.*prompts.*} (\S+)$", ask(made.url, "/metrics").text, re.M)[0:1]
                .__repr__() for _ in range(20)}  # fmt: skip
        os.kill(second.pid, signal.SIGSTOP)
        stopped = under_load(made.url, lambda: None)
        os.kill(second.pid, signal.SIGCONT)
        time.sleep(PATIENCE)
        killed = under_load(made.url, second.kill)
        second.wait()
        made.running = [first]
        made.add()
        made.until_ready(2)
    return {
        "way": way,
        "least_share_of_connections": min(spread.values()) / sum(spread.values()) if len(spread) > 1 else 0.0,
        "prompts_found_of_40": found.count(200),
        "metrics_differ": len(told) > 1,
        "stopped": stopped,
        "killed": killed,
    }


def built(clip: bytes) -> dict[str, Any]:
    """The same of the command, which replaces by itself who is killed."""
    found_in = conditions()
    flags = ["--processes", "2", "--threads", "1", "--log-format", "json", "--drain-grace-seconds", "0"]
    with own_socket(shared=False) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:

        def said() -> list[dict[str, Any]]:
            lines = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode().splitlines()
            return [json.loads(line) for line in lines]

        def until(words: str) -> str:
            while True:
                if (found := next((one["message"] for one in said() if words in one["message"]), None)) is not None:
                    return str(found)
                assert server.poll() is None, said()
                time.sleep(0.5)

        command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port), *flags]
        server = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=subprocess.DEVNULL)
        try:
            pids = [int(pid) for pid in until("processes serve on").rpartition("(")[2].rstrip(")").split(", ")]
            for _ in range(CONNECTIONS):
                ask(url, "/v1/models")
            spread = Counter(one["pid"] for one in said() if one.get("route") == "/v1/models")
            name = ask(url, "/v1/audio/prompts", method="POST", files={"file": ("a.flac", clip)}).json()["id"]
            kept = [ask(url, f"/v1/audio/prompts/{name}").status_code for _ in range(40)]
            time.sleep(PATIENCE)  # a request counts when its answer has been sent
            series = re.compile(r"^whispergpt_requests_total{.*prompts.*} (\S+)$", re.M)
            told = {tuple(series.findall(ask(url, "/metrics").text)) for _ in range(20)}
            os.kill(pids[1], signal.SIGSTOP)
            stopped = under_load(url, lambda: None)
            os.kill(pids[1], signal.SIGCONT)
            time.sleep(PATIENCE)
            killed = under_load(url, lambda: os.kill(pids[1], signal.SIGKILL))
            until("in the place of one")
            memory = {"supervisor_pss_mib": pss_mib(server.pid)}
        finally:
            server.terminate()
            server.wait()
    return {
        "conditions": found_in,
        "way": "`serve --processes 2`",
        "least_share_of_connections": min(spread.values()) / sum(spread.values()) if len(spread) > 1 else 0.0,
        "prompts_found_of_40": kept.count(200),
        "metrics_differ": len(told) > 1,
        "stopped": stopped,
        "killed": killed,
        **memory,
    }


RAY = """
import time, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
print("ready", ray.__version__, flush=True)
time.sleep(600)
"""


def beside_ray(python: str) -> dict[str, Any]:
    """Memory of what Ray runs on a host before Serve's controller, its proxy and any replica are there."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    started = subprocess.Popen([python, "-c", RAY], stdout=subprocess.PIPE, env=os.environ | quiet, text=True)
    assert started.stdout is not None
    try:
        version = next(line.split()[1] for line in started.stdout if line.startswith("ready"))
        found = {pid: pss_mib(pid) for pid in descendants(started.pid)}
    finally:
        for pid in [*descendants(started.pid), started.pid]:
            with ExitStack() as gone:
                gone.push(lambda kind, *rest: kind is ProcessLookupError)
                os.kill(pid, signal.SIGKILL)
        started.wait()
    return {"version": version, "processes": len(found), "pss_mib": sum(found.values())}


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that these have."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found, rest = [], [pid]
    while rest:
        one = rest.pop()
        own = [child for child, parent in parents.items() if parent == one]
        found += own
        rest += own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "processes.json")
    parser.add_argument("--ray", help="a Python that has ray[serve]")
    parser.add_argument("--built-alone", action="store_true", help="the rest stays as it was found")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        port, descriptor = arguments.worker
        worker(port, descriptor, arguments.threads)
        return
    clip = (ROOT / "examples" / "speech.flac").read_bytes()
    if arguments.built_alone:
        before = json.loads(arguments.out.read_text())
        write(arguments.out, before.pop("conditions"), before | {"built": built(clip)})
        return
    found_in = conditions()
    body: dict[str, Any] = {"shared": [], "cost": []}
    for way in WAYS:
        body["shared"].append(shared(way, clip))
        write(arguments.out, found_in, body)  # each time: on a busy machine the rest may take long
    for count, threads in ((1, 1), (1, 2), (2, 1)):
        body["cost"].append(cost(count, threads, clip))
        write(arguments.out, found_in, body)
    body["built"] = built(clip)
    write(arguments.out, found_in, body)
    if arguments.ray:
        body["ray"] = beside_ray(arguments.ray)
        write(arguments.out, found_in, body)
    console.print_json(data=body)


if __name__ == "__main__":
    main()
