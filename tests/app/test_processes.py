"""Several processes behind one port: real ones, started by the command. And their supervisor with smaller ones."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli import supervisor
from app.cli.supervisor import StartError, Supervisor, told_to
from app.cli.worker import gpu_in_turn
from app.settings import Settings
from app.shared import Shared, made_folder, remove_left
from tests.support.several import SeveralProcesses, begin
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes")
ALICE, BOB = {"authorization": "Bearer first"}, {"authorization": "Bearer second"}
KEYS = '{"alice": "first", "bob": "second"}'
GOOD = {"seconds": "0.4", "seed": "7", "response_format": "pcm"}
LONG = {"seconds": "900", "stream": "true", "response_format": "pcm"}
REQUESTS = 60  # a minute
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(saved_bundle: Path) -> Iterator[SeveralProcesses]:
    running = SeveralProcesses(
        saved_bundle, 2, "--max-seconds", "1000", "--slots", "4", "--limit-requests-per-minute", str(REQUESTS),
        "--limit-concurrent-requests", "3", "--drain-grace-seconds", "2", "--drain-seconds", "100",
        WHISPERGPT_API_KEYS=KEYS, WHISPERGPT_ADMIN_KEYS="root",
    )  # fmt: skip
    yield running
    running.close()


def form(**fields: str) -> dict[str, Any]:
    """A form without a file."""
    return {name: (None, value) for name, value in fields.items()}


def logged(server: SeveralProcesses, line: str) -> bool:
    return re.search(line, server.output(), re.M) is not None


def total(server: SeveralProcesses, pattern: str) -> float:
    """Of all series whose name and labels fit."""
    text = server.client.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^(?:{pattern}) (\S+)$", text, re.M))


def test_the_same_bytes_whichever_answers(server: SeveralProcesses, clip: bytes) -> None:
    """And its line in the log tells which it was."""
    made, files = {}, {"file": ("a", clip)}
    for pid in server.pids:
        with server.only(pid) as client:
            answer = client.post("/continue", files=files, data=GOOD, headers=ALICE | {"x-request-id": f"by-{pid}"})
        assert answer.status_code == 200, answer.text
        made[pid] = answer.content
    for pid in made:
        until(partial(logged, server, rf"request_id=by-{pid} .*\bpid={pid}$"), server.output)
    first, second = made.values()
    assert first == second and len(first) == 30 * 640


def test_what_one_keeps_the_other_finds(server: SeveralProcesses, clip: bytes) -> None:
    """A prompt and the end of a continuation, by their owner alone, with the bytes of a request that has the file."""
    one, other = server.pids
    files = {"file": ("a", clip)}
    with server.only(one) as client:
        whole = client.post("/continue", files=files, data=GOOD | {"seconds": "0.8"}, headers=ALICE).content
        prompt = client.post("/v1/audio/prompts", files=files, headers=ALICE).json()
    with server.only(other) as client:
        made = client.post("/continue", files=form(prompt=prompt["id"], **GOOD), headers=ALICE)
        assert made.status_code == 200, made.text
        assert client.post("/continue", files=form(prompt=prompt["id"], **GOOD), headers=BOB).status_code == 404
        told = client.get(f"/v1/audio/prompts/{prompt['id']}", headers=ALICE).json()
        assert told | {"expires_at": 0} == prompt | {"expires_at": 0}
    with server.only(one) as client:
        rest = client.post(
            "/continue", files=form(continue_from=made.headers["x-whispergpt-id"], **GOOD), headers=ALICE
        )
    assert made.content + rest.content == whole
    kept = total(server, r'whispergpt_prompts_kept\{kind="prompt"\}')
    with server.only(other) as client:
        assert client.delete(f"/v1/audio/prompts/{prompt['id']}", headers=ALICE).status_code == 200
    with server.only(one) as client:
        assert client.get(f"/v1/audio/prompts/{prompt['id']}", headers=ALICE).status_code == 404
    assert total(server, r'whispergpt_prompts_kept\{kind="prompt"\}') == kept - 1


def test_any_of_them_tells_the_figures_of_all(server: SeveralProcesses) -> None:
    asked = r'whispergpt_requests_total\{outcome="ok",route="/v1/models"\}'
    before = total(server, asked)
    for count, pid in enumerate(server.pids, 1):
        with server.only(pid) as client:
            for _ in range(count):
                client.get("/v1/models", headers=ALICE)
    until(lambda: total(server, asked) == before + 3, server.output)  # they count when their answer has been sent
    for pid in server.pids:
        with server.only(pid) as client:
            text = client.get("/metrics").text
        told = {name: float(value) for name, value in re.findall(r"^(\w+)(?:{[^}]*})? (\S+)$", text, re.M)}
        assert float(re.findall(rf"^{asked} (\S+)$", text, re.M)[0]) == before + 3
        assert (told["whispergpt_slots"], told["whispergpt_decoders"], told["whispergpt_batch_invariant"]) == (8, 4, 1)
        assert told["whispergpt_build_info"] == told["whispergpt_model_loaded"] == 1
        sizes = [Path(f"/proc/{one}/statm").read_text().split()[1] for one in server.pids]
        assert told["process_resident_memory_bytes"] > max(map(int, sizes)) * os.sysconf("SC_PAGE_SIZE") * 1.5
        assert text.count("# TYPE process_cpu_seconds_total ") == text.count("# TYPE whispergpt_requests_total ") == 1


def test_requests_at_the_same_time_are_those_of_all(server: SeveralProcesses, clip: bytes) -> None:
    streams = [Stream(server, pid, clip, "second") for pid in (*server.pids, server.pids[0])]
    try:
        answer = server.client.post("/score", headers=BOB)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
        assert "may have 3 requests under way" in answer.text
        assert server.client.post("/score", headers=ALICE).status_code == 400
    finally:
        for stream in streams:
            stream.close()
    until(lambda: total(server, "whispergpt_requests_running") == 0, server.output)
    assert server.client.post("/score", headers=BOB).status_code == 400


def test_requests_a_minute_are_those_of_all(server: SeveralProcesses) -> None:
    """What the second one still lets through is what the first has left. It slides: a few more, if it takes long."""
    one, other = server.pids
    with server.only(one) as client:
        for _ in range(REQUESTS // 2):
            assert client.post("/score", headers=BOB).status_code == 400, "counted before it is looked at"
    with server.only(other) as client:
        answers = [client.post("/score", headers=BOB) for _ in range(REQUESTS - 10)]
    assert {answer.status_code for answer in answers} == {400, 429}
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    assert f"{REQUESTS} requests a minute" in answers[-1].text and int(answers[-1].headers["retry-after"]) > 0
    assert server.client.post("/score", headers=ALICE).status_code == 400


def with_key(request: bytes, key: str) -> bytes:
    line, rest = request.split(b"\r\n", 1)
    return line + b"\r\nauthorization: Bearer " + key.encode() + b"\r\n" + rest


def test_models_are_not_changed_in_one_of_them(server: SeveralProcesses) -> None:
    admin = {"authorization": "Bearer root"}
    changes = (
        server.client.post("/v1/admin/models", json={"model": "other"}, headers=admin),
        server.client.delete("/v1/admin/models/other", headers=admin),
    )
    for answer in changes:
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "several_processes")
        assert "2 processes" in answer.json()["error"]["message"]
    assert server.client.post("/v1/admin/models", json={"model": "other"}).status_code == 401
    assert len(server.client.get("/v1/admin/models", headers=admin).json()["data"]) == 1


class Stream:
    """A continuation that goes on and on."""

    def __init__(self, server: SeveralProcesses, pid: int, clip: bytes, key: str = "first") -> None:
        self.content, self.whole = bytearray(), False
        with server.only(pid):
            self._connection = server.connect()
            self._connection.sendall(with_key(server.form("/continue", clip, **LONG), key))
            assert b" 200 " in self._connection.recv(4_096).splitlines()[0]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while block := self._connection.recv(65_536):
                self.content += block
        except ConnectionResetError:
            pass
        self.whole = self.content.endswith(b"\r\n0\r\n\r\n")

    def goes_on(self) -> bool:
        before = len(self.content)
        until(lambda: len(self.content) > before or not self._thread.is_alive())
        return len(self.content) > before

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        if not self.ended():
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(HANG_SECONDS)
        self._connection.close()


def test_a_process_that_is_killed_takes_its_own_requests_alone(server: SeveralProcesses, clip: bytes) -> None:
    """Another takes its place, and the others serve meanwhile; what it kept is found, what it counted stays counted."""
    victim, other = server.pids
    files = {"file": ("a", clip)}
    with server.only(victim) as client:
        prompt = client.post("/v1/audio/prompts", files=files, headers=ALICE).json()["id"]
    before = {name: total(server, name) for name in (
        r"whispergpt_generated_tokens_total", r"whispergpt_requests_total\{.*\}", "process_cpu_seconds_total",
    )}  # fmt: skip
    streams = [Stream(server, pid, clip) for pid in (victim, other)]
    try:
        until(lambda: total(server, "whispergpt_requests_running") == 2, server.output)
        assert all(stream.goes_on() for stream in streams)
        os.kill(victim, signal.SIGKILL)
        until(streams[0].ended)
        url = server.client.base_url
        for _ in range(5):
            answer = httpx.post(f"{url}/continue", headers=ALICE, files=form(prompt=prompt, seconds="0.1"), timeout=60)
            assert answer.status_code == 200, answer.text
        while "in the place of one" not in server.output():
            assert httpx.get(f"{url}/v1/audio/prompts/{prompt}", headers=ALICE, timeout=60).status_code == 200
        assert not streams[0].whole and streams[1].goes_on()
        assert total(server, "whispergpt_requests_running") == total(server, "whispergpt_slots_used") == 1
        assert total(server, "whispergpt_slots") == 8 and total(server, "whispergpt_processes_lost_total") == 1
        assert all(total(server, name) >= value for name, value in before.items())
        until(lambda: total(server, "whispergpt_decoders") == 4, server.output)
        (new,) = set(server.pids) - {other}
        assert f"process {victim} ended with signal 9; another is started in its place\n" in plain(server)
        assert f"process {new} serves in the place of one that ended" in plain(server)
        with server.only(new) as client:
            assert client.get(f"/v1/audio/prompts/{prompt}", headers=ALICE).status_code == 200
    finally:
        for stream in streams:
            stream.close()
    until(lambda: not total(server, "whispergpt_requests_running"), server.output)


def plain(server: SeveralProcesses) -> str:
    """The log without which process says it."""
    return re.sub(r" pid=\d+$", "", server.output(), flags=re.M)


def test_a_term_signal_drains_all(server: SeveralProcesses, clip: bytes) -> None:
    """The last one, since it ends the server: what runs in each comes to its end, then the port is closed."""
    folder = server.folder()
    fields = {"seconds": "3", "seed": "7", "stream": "true", "response_format": "json"}
    connections = []
    for pid in server.pids:
        with server.only(pid):
            connections.append(server.connect())
            connections[-1].sendall(with_key(server.form("/continue", clip, **fields), "first"))
            assert b" 200 " in connections[-1].recv(4_096).splitlines()[0]
    pids = server.pids
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.client.base_url}/readyz").status_code == 503)
    refused = httpx.post(f"{server.client.base_url}/continue", headers=ALICE, files={"file": ("a", clip)})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    for connection in connections:
        content = bytearray()
        while block := connection.recv(65_536):
            content += block
        connection.close()
        done = json.loads(bytes(content).rpartition(b"data: ")[2].partition(b"\n")[0])
        assert [len(choice["tokens"]) for choice in done["choices"]] == [225]
    assert server.process.wait(HANG_SECONDS) in (0, -signal.SIGTERM)
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not folder.exists() and "Traceback" not in server.output()


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_second_signal_cuts(saved_bundle: Path, clip: bytes, second: signal.Signals) -> None:
    server = SeveralProcesses(saved_bundle, 2, "--drain-grace-seconds", "100", "--drain-seconds", "100",
                              "--max-seconds", "1000")  # fmt: skip
    try:
        pids = server.pids
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="900"))
            server.until("requests_running", 1)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{server.client.base_url}/readyz").status_code == 503)
            for pid in pids:  # as a service manager may: it is no second one
                os.kill(pid, signal.SIGTERM)
            assert httpx.get(f"{server.client.base_url}/livez").status_code == 200
            server.process.send_signal(second)
            assert server.process.wait(HANG_SECONDS) != 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert "Traceback" not in server.output()
    finally:
        server.close()


@pytest.mark.slow
def test_processes_whose_supervisor_is_killed_end_too(saved_bundle: Path, clip: bytes) -> None:
    """Each after what it has in hand; the last one leaves nothing of them."""
    server = SeveralProcesses(saved_bundle, 2, "--max-seconds", "1000", "--drain-seconds", "8")
    try:
        busy, idle = server.pids
        folder = server.folder()
        with server.only(busy):
            client = server.connect()
            client.sendall(server.form("/continue", clip, seconds="900"))
        with client:
            server.until("requests_running", 1)
            server.process.kill()
            until(lambda: not Path(f"/proc/{idle}").exists(), server.output)
            assert folder.is_dir(), "the other one still keeps something there"
            assert b" 200 " in client.recv(4_096).splitlines()[0]
        until(lambda: not Path(f"/proc/{busy}").exists(), server.output)
        assert not folder.exists() and "Traceback" not in server.output()
    finally:
        server.close()


def started(*flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "app.cli.main", "serve", "--processes", "2", "--threads", "1", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS, env=os.environ | environment
    )


def test_a_port_in_use_is_told_before_any_process_is_started(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no weights here")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = started("--port", str(port), "--bundle", str(tmp_path))
    assert done.returncode == 3
    assert done.stdout + done.stderr == (
        f"error: port {port} on 127.0.0.1 is in use; choose another with --port or --host\n"
    )


@pytest.mark.slow
def test_weights_that_cannot_be_read_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no weights here")
    done = started("--port", "0", "--bundle", str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line


# The supervisor, with processes that do nothing but talk


@pytest.fixture
def supervise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_listener: socket.socket
) -> Callable[..., Supervisor]:
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.02)
    for name in ("prompts", "metrics"):
        (tmp_path / name).mkdir()

    def make(code: str, count: int = 1, ready: Callable[[list[int]], None] = lambda pids: None) -> Supervisor:
        orders = [{"index": index, "log": str(tmp_path / "log")} for index in range(count)]
        shared = Shared(tmp_path, -1, count)
        return Supervisor(orders, shared, [free_listener], 5.0, ready, begin(code))

    return make


@pytest.fixture
def free_listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def term(pids: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_processes_that_keep_dying_at_their_start(supervise: Callable[..., Supervisor]) -> None:
    """Are not started for ever."""
    with pytest.raises(
        StartError, match=f"ended {supervisor.TRIES} times at their start, at last with signal 9"
    ) as error:
        supervise("os.kill(os.getpid(), signal.SIGKILL)").run()
    assert error.value.exit_code == 3


def test_what_a_process_says_of_its_failure_is_the_error(supervise: Callable[..., Supervisor]) -> None:
    with pytest.raises(StartError, match="no such weights") as error:
        supervise("say('failed', message='no such weights', exit_code=7)", count=2).run()
    assert error.value.exit_code == 7


def test_who_serves_goes_on_while_another_place_cannot_be_filled(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    """More tries than end a server of which nothing serves."""
    tried = tmp_path / "tried"
    code = (
        f"tried = {str(tried)!r}\n"
        "if order['index'] == 0:\n say('ready')\n lines.readline()\n sys.exit()\n"
        "open(tried, 'a').write('x')\n"
        f"if len(open(tried).read()) > {2 * supervisor.TRIES}:\n say('ready')\n lines.readline()\n"
    )
    assert supervise(code, 2, term).run() == [signal.SIGTERM]
    assert len(tried.read_text()) == 2 * supervisor.TRIES + 1


def test_who_is_silent_is_killed_and_replaced(
    supervise: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose event loop hangs, say. The next one is told how many it is to count."""
    monkeypatch.setattr(supervisor, "SILENT_SECONDS", 0.5)
    code = (
        "open(order['log'], 'a').write(f\"{order['lost']} \")\nsay('ready')\n"
        "if order['lost']:\n os.kill(os.getppid(), signal.SIGTERM)\n lines.readline()\nelse:\n time.sleep(600)\n"
    )
    assert supervise(code).run() == [signal.SIGTERM]
    assert (tmp_path / "log").read_text() == "0 1 "


@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, b"drain"), (signal.SIGINT, b"hurry")])
def test_all_are_told_to_end_and_the_port_is_theirs_alone(
    supervise: Callable[..., Supervisor], tmp_path: Path, free_listener: socket.socket, number: int, word: bytes
) -> None:
    code = "say('ready')\nopen(order['log'], 'ab').write(lines.readline())\n"
    told = supervise(code, 3, lambda pids: os.kill(os.getpid(), number))
    assert told.run() == [number]
    assert (tmp_path / "log").read_bytes() == (word + b"\n") * 3
    assert free_listener.fileno() == -1
    assert [one.process for one in told.workers] == [None] * 3


def test_who_does_not_end_is_killed(supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PATIENCE_SECONDS", -4.5)
    told = supervise("say('ready')\ntime.sleep(600)", 2, term)
    assert told.run() == [signal.SIGTERM]


def test_who_is_refused_for_want_of_room_may_find_it_elsewhere(serve: Callable[..., Any], clip: bytes) -> None:
    """By another connection, which another process may accept; of one process there is no other."""
    service = serve()
    service.app.state.engine.admission.permits = 0
    for shared, close in ((None, None), (Shared(Path("nowhere"), 0, 2), "close")):
        service.app.state.shared = shared
        answer = service.post("/continue", clip, data=GOOD)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
        assert answer.headers.get("connection") == close and int(answer.headers["retry-after"]) > 0


def test_settings_come_through_with_their_keys() -> None:
    """Whatever the environment of the process says."""
    given = Settings(api_keys=KEYS, admin_keys="root", bundle="a", models_mib=1.5, processes=3)
    again = Settings(**json.loads(json.dumps(told_to(given))))
    assert {name: getattr(again, name) for name in Settings.model_fields} == {
        name: getattr(given, name) for name in Settings.model_fields
    }
    assert [getattr(key, "name", None) for key in again.api_keys] == ["alice", "bob"]


def test_threads_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.cores", lambda: 8)
    assert [Settings(processes=count).threads for count in (1, 2, 4, 8, 16)] == [2, 2, 2, 1, 1]
    assert Settings(processes=4, threads=3).threads == 3


def test_gpus_are_taken_in_turn() -> None:
    assert [gpu_in_turn(index, 2) for index in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_folders_that_a_kill_leaves_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that nobody lives by; not that of a server that runs."""
    monkeypatch.setattr("app.shared.MEMORY", tmp_path)
    code = "import os, sys; from app.shared import made_folder; print(made_folder(0)); sys.stdout.flush(); os._exit(9)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    left = subprocess.run([sys.executable, "-c", code.replace("made_folder;", "made_folder; import app.shared; from "
                           f"pathlib import Path; app.shared.MEMORY = Path({str(tmp_path)!r});")],
                          capture_output=True, text=True, env=environment, check=False).stdout.strip()  # fmt: skip
    assert Path(left).is_dir() and Path(left).parent == tmp_path
    mine = made_folder(0)
    assert mine.parent == tmp_path and mine.is_dir() and not Path(left).exists()
    assert mine.stat().st_mode & 0o777 == 0o700
    remove_left(tmp_path)
    assert mine.is_dir()


def test_a_folder_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory of a container may hold 64 MiB: then it is among the temporary files."""
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr("app.shared.MEMORY", tmp_path / "memory")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sizes = {str(tmp_path / "memory"): 2**26, str(tmp_path): 2**40}
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": sizes[str(path)]}))
    assert made_folder(2**28).parent == tmp_path
    assert made_folder(2**20).parent == tmp_path / "memory"


def test_what_a_killed_process_leaves_is_buried(tmp_path: Path) -> None:
    """By a supervisor to which it falls, as to the first process of a container: decoders of files, say."""
    code = f"""
import ctypes, os, signal, sys
from pathlib import Path
from app.cli.supervisor import Supervisor
from app.shared import Shared
from tests.support.several import begin
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
for name in ("prompts", "metrics"):
    (Path({str(tmp_path)!r}) / name).mkdir()
child = '''
if order['lost']:
    say('ready')
    lines.readline()
elif os.fork() == 0:
    time.sleep(0.2)
    os._exit(0)
else:
    os.kill(os.getpid(), signal.SIGKILL)
'''
class Told(Supervisor):
    looks = 0
    def _bury(self):
        super()._bury()
        own = [str(worker.process.pid) for worker in self._running]
        children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
        if self.workers[0].ready and children == own and self._until is None:
            print("buried")
            os.kill(os.getpid(), signal.SIGTERM)
Told([{{}}], Shared(Path({str(tmp_path)!r}), -1, 1), [], 5.0, print, begin(child)).run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS)
    assert done.returncode == 0 and done.stdout.endswith("buried\n"), done.stderr
