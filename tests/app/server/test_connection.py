"""What a client may do beside a good request: heads without end, bodies that nobody reads, and floods of either."""

import asyncio
import http.client
import json
import select
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

import app.server.connection
from app.main import create_app
from app.server.connection import HEAD_BYTES, HEADERS, SLICE_BYTES, Connection, connection
from app.settings import Settings
from tests.support.waiting import HANG_SECONDS, until

WAITING = 50
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


class Running:
    """The application behind real sockets, on a thread."""

    def __init__(self, bundle: Any) -> None:
        settings = Settings(
            max_upload_mib=1, head_timeout_seconds=1, upload_timeout_seconds=20, drain_seconds=1,
            api_keys=[SecretStr("key")],
        )  # fmt: skip
        self.app = create_app(settings, bundle)
        self.go_on = asyncio.Event()

        async def slow() -> str:
            await self.go_on.wait()
            return "slow"

        self.app.add_api_route("/slow", slow)
        http = connection(settings, self.app.state.metrics, WAITING)
        self.server = uvicorn.Server(uvicorn.Config(self.app, http=http, port=0, log_config=None))
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.thread.start()
        until(lambda: self.server.started or not self.thread.is_alive())
        assert self.server.started
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_SECONDS)

    def works(self) -> None:
        with urllib.request.urlopen(f"{self.url}/livez", timeout=HANG_SECONDS) as answer:
            assert answer.status == 200

    def until_quiet(self) -> None:
        """No connection is left."""
        until(lambda: not self.server.server_state.connections)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="module")
def running(bundle: Any) -> Iterator[Running]:
    server = Running(bundle)
    yield server
    server.close()


def taken(client: socket.socket) -> bytes:
    """What comes until the connection ends."""
    content = b""
    with suppress(ConnectionError):
        while block := client.recv(65_536):
            content += block
    return content


def sent(client: socket.socket, content: bytes) -> None:
    """Sends until the server has an answer; it takes no more than it needs."""
    for start in range(0, len(content), 65_536):
        if select.select([client], [], [], 0)[0]:
            return
        with suppress(ConnectionError):
            client.sendall(content[start : start + 65_536])


def refused(answer: bytes, status: int, code: str) -> None:
    """An answer like any other: the envelope, an id, and the headers of every answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert int(lines[0].split()[1]) == status, answer
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id"}
    assert error["code"] == code
    assert b"x-request-id: " + error["request_id"].encode() in lines
    assert b"connection: close" in lines
    assert b"x-content-type-options: nosniff" in lines


ENDLESS = {
    "target": b"GET /" + b"a" * 2**23,
    "name": GET + b"a" * 2**23,
    "value": GET + b"a: " + b"b" * 2**23,
    "line ends": b"\r\n" * 2**22,
    "headers": GET + b"a: b\r\n" * 2**20,
    "trailer": b"POST /continue HTTP/1.1\r\nHost: x\r\nx-api-key: key\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: multipart/form-data; boundary=q\r\n\r\n0\r\na: " + b"b" * 2**23,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_head_that_does_not_end(running: Running, name: str) -> None:
    with running.connect() as client:
        sent(client, ENDLESS[name])
        refused(taken(client), 431, "head_too_large")
    running.works()


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 431)])
def test_the_longest_head(running: Running, more: int, status: int) -> None:
    end = b"\r\nConnection: close\r\n\r\n"
    with running.connect() as client:
        client.sendall(GET + b"a: " + b"b" * (HEAD_BYTES - len(GET) - 3 - len(end) + more) + end)
        assert int(taken(client).split()[1]) == status


@pytest.mark.parametrize(("count", "status"), [(HEADERS, 200), (HEADERS + 1, 431)])
def test_the_most_headers(running: Running, count: int, status: int) -> None:
    with running.connect() as client:
        client.sendall(GET + b"Connection: close\r\n" + b"a: b\r\n" * (count - 2) + b"\r\n")
        assert int(taken(client).split()[1]) == status


def test_a_trailer_is_no_header(running: Running) -> None:
    """Else a client behind a proxy could give itself what the proxy's own headers say."""
    body = b"POST /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with running.connect() as client:
        client.sendall(body + b"Connection: close\r\n\r\n0\r\nx-api-key: key\r\nx-request-id: mine\r\n\r\n")
        assert b"x-request-id: mine" not in taken(client)


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"], ids=["first", "second"])
def test_a_head_that_comes_too_slowly(running: Running, before: bytes) -> None:
    """A byte now and then is no progress."""
    with running.connect() as client:
        client.sendall(before)
        if before:
            while not client.recv(4_096).endswith(b'{"status":"alive"}'):
                pass
        client.sendall(GET)

        def answered() -> bool:
            if select.select([client], [], [], 0.1)[0]:
                return True
            client.sendall(b"a")
            return False

        until(answered)
        refused(taken(client), 408, "upload_timeout")


def test_a_client_that_says_nothing_is_told_nothing(running: Running) -> None:
    with running.connect() as client:
        assert taken(client) == b""


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\0", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_no_http(running: Running, noise: bytes) -> None:
    with running.connect() as client:
        client.sendall(noise)
        refused(taken(client), 400, "malformed_request")


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", [], 400), ("1.1", ["a", "b"], 400), ("1.1", ["a", "a"], 400), ("1.0", ["a", "b"], 400),
     ("1.1", ["a b"], 400), ("1.1", ["a/b"], 400), ("1.1", ["user@a"], 400), ("1.1", ["a\xff"], 400),
     ("1.0", [], 200), ("1.1", [""], 200), ("1.1", ["a:80"], 200), ("1.1", ["[::1]:80"], 200), ("1.1", [" a "], 200)],
)  # fmt: skip
def test_the_host_header(running: Running, version: str, hosts: list[str], status: int) -> None:
    head = f"GET /livez HTTP/{version}\r\nConnection: close\r\nx-request-id: mine\r\n"
    head += "".join(f"Host: {host}\r\n" for host in hosts) + "\r\n"
    with running.connect() as client:
        client.sendall(head.encode("latin-1"))
        answer = taken(client)
    assert b"x-request-id: mine" in answer
    if status == 200:
        assert answer.endswith(b'{"status":"alive"}')
    else:
        refused(answer, 400, "malformed_request")


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    "head",
    [b"POST /livez HTTP/1.1\r\nHost: x\r\n", GET + b"Content-Length: 9\r\n", GET + b"Transfer-Encoding: chunked\r\n"],
)
def test_a_websocket_that_opens_with_a_body(running: Running, head: bytes) -> None:
    """uvicorn would wait for what follows, for ever."""
    with running.connect() as client:
        client.sendall(head + UPGRADE % b"websocket" + b"\r\nabc")
        refused(taken(client), 400, "malformed_request")


def test_a_websocket_behind_a_request_that_is_answered(running: Running) -> None:
    with running.connect() as client:
        client.sendall(GET + b"\r\n" + GET + UPGRADE % b"websocket" + b"\r\n")
        first, _, second = taken(client).partition(b'{"status":"alive"}')
    assert b" 200 " in first
    refused(second, 400, "malformed_request")


def test_another_upgrade_is_not_taken(running: Running) -> None:
    """Java's client and curl ask for HTTP/2 so, and go on in HTTP/1.1 on the same connection."""
    with running.connect() as client:
        client.sendall(GET + UPGRADE % b"h2c" + b"\r\n")
        assert b" 200 " in client.recv(4_096)
        client.sendall(GET + b"Connection: close\r\n\r\n")
        assert taken(client).endswith(b'{"status":"alive"}')


def test_a_body_that_is_no_http(running: Running) -> None:
    """The application hears that its client is gone, and the client what was wrong."""
    with running.connect() as client:
        client.sendall(
            b"POST /continue HTTP/1.1\r\nHost: x\r\nx-api-key: key\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=q\r\n\r\nnot a number\r\n"
        )
        refused(taken(client), 400, "malformed_request")
    running.works()
    assert running.app.state.engine.in_use == 0


def test_half_heads_keep_nobody_waiting(running: Running) -> None:
    """The oldest go: there are never more than so many, and whoever goes on gets an answer."""
    with ExitStack() as all_of_them:
        clients = [all_of_them.enter_context(running.connect()) for _ in range(4 * WAITING)]
        for client in clients:
            client.sendall(GET)
        running.works()
        assert len(running.server.server_state.connections) <= WAITING + 1
        clients[-1].sendall(b"Connection: close\r\n\r\n")
        assert taken(clients[-1]).endswith(b'{"status":"alive"}')
        assert taken(clients[0]) == b""


def test_requests_behind_one_another_are_answered_in_order(running: Running) -> None:
    count = 3_000
    with running.connect() as client:
        feeder = threading.Thread(
            target=client.sendall,
            args=[b"".join(GET + b"x-request-id: %d-\r\n\r\n" % index for index in range(count))
                  + GET + b"Connection: close\r\n\r\n"],
        )  # fmt: skip
        feeder.start()
        answers = taken(client)
        feeder.join()
    ids = [line for line in answers.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids[:-1] == [b"x-request-id: %d-" % index for index in range(count)]


def test_few_requests_are_taken_up_behind_one_that_is_answered(running: Running) -> None:
    """However many are sent. What comes behind the answer is told after it; and the client's leaving is noticed."""
    one = b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with running.connect() as client:
        client.settimeout(2)
        with suppress(TimeoutError):
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + one * 500_000)
        (only,) = running.server.server_state.connections
        assert isinstance(only, Connection)
        assert 0 < len(only.pipeline) <= SLICE_BYTES / len(one) + 1
        running.works()
    running.loop.call_soon_threadsafe(running.go_on.set)
    running.until_quiet()
    running.go_on.clear()


@pytest.mark.parametrize("wrong", [b"\0\0\0\0", GET + b"a: " + b"b" * 100_000], ids=["no HTTP", "too long"])
def test_a_fault_behind_a_request_is_told_after_its_answer(running: Running, wrong: bytes) -> None:
    with running.connect() as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        client.sendall(wrong)
        assert not select.select([client], [], [], 0.2)[0]
        running.loop.call_soon_threadsafe(running.go_on.set)
        answer, _, fault = taken(client).partition(b'"slow"')
        running.go_on.clear()
    assert b" 200 " in answer
    assert int(fault.split()[1]) in (400, 431)


FORM = "multipart/form-data; boundary=q"
EARLY = {
    "404": ("POST", "/nowhere", {}),
    "405": ("PUT", "/continue", {}),
    "401": ("POST", "/continue", {"content-type": FORM}),
    "400": ("POST", "/score", {"content-type": "text/plain", "x-api-key": "key"}),
    "413": ("POST", "/continue", {"content-type": FORM, "x-api-key": "key"}),
    "429": ("POST", "/continue", {"content-type": FORM, "x-api-key": "key"}),
}


@pytest.mark.parametrize("mib", [8, 30, 86])
@pytest.mark.parametrize("name", EARLY)
def test_an_answer_arrives_before_its_body_is_read(
    running: Running, name: str, mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """urllib asks for the connection to be closed, sends all of the body, and only then reads."""
    method, path, headers = EARLY[name]
    if name == "429":
        monkeypatch.setattr(running.app.state.engine.admission, "permits", 0)
    for _ in range(3):
        request = urllib.request.Request(running.url + path, bytes(mib * 2**20), headers, method=method)
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(request, timeout=60)
        with told.value as answer:
            assert answer.status == int(name)
            assert "code" in json.load(answer)["error"]
    running.until_quiet()


def test_a_connection_is_good_for_more_after_a_body_that_nobody_read(running: Running) -> None:
    client = http.client.HTTPConnection("127.0.0.1", running.port, timeout=HANG_SECONDS)
    for _ in range(3):
        client.request("POST", "/nowhere", bytes(2**22))
        answer = client.getresponse()
        answer.read()
        assert answer.status == 404
        port = client.sock.getsockname()[1]
        client.request("GET", "/livez")
        answer = client.getresponse()
        answer.read()
        assert answer.status == 200
        assert client.sock.getsockname()[1] == port
    client.close()


@pytest.mark.parametrize("kept", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
def test_a_body_that_does_not_end_is_forgotten_up_to_a_bound(
    running: Running, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.server.connection, "LINGER_BYTES", 2**24)
    with running.connect() as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n" + kept + b"\r\n")
        with pytest.raises(ConnectionError):
            client.sendall(bytes(2**28))


@pytest.mark.parametrize("kept", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
def test_a_client_that_stops_in_its_body_is_not_waited_for(
    running: Running, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.server.connection, "LINGER_IDLE_SECONDS", 0.3)
    with running.connect() as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n" + kept + b"\r\nabc")
        running.until_quiet()
        assert b" 404 " in taken(client)
