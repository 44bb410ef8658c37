"""What only a socket shows: a real process, started by the command, and clients that break off."""

import base64
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect as websocket

from app.cli.listening import bound
from tests.support.process import Server
from tests.support.waiting import HANG_SECONDS, until


@pytest.fixture(scope="module")
def folder(saved_bundle: Path) -> Path:
    return saved_bundle


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder, "--queue", "0", "--slots", "1", "--max-seconds", "1000", "--max-upload-mib", "1")
    yield running
    running.close()


def test_it_serves(server: Server, clip: bytes) -> None:
    server.works(clip)


def test_leaving_in_the_middle_of_the_upload(server: Server, clip: bytes) -> None:
    """The server has one place, so the next request shows that it is free again."""
    before = server.metric('client_disconnects_total{stage="upload"}')
    request = server.form("/continue", clip)
    with server.connect() as client:
        client.sendall(request[: len(request) // 2])
        server.until("requests_waiting", 1)
        refused = server.client.post("/continue", files={"file": ("a", clip)})
        assert refused.status_code == 429
    server.until('client_disconnects_total{stage="upload"}', before + 1)
    server.works(clip)


def test_leaving_in_the_middle_of_the_work(server: Server, clip: bytes) -> None:
    before = server.metric('client_disconnects_total{stage="step"}')
    with server.connect() as client:
        client.sendall(server.form("/continue", clip, seconds="900"))
        server.until("slots_used", 1)
    server.until('client_disconnects_total{stage="step"}', before + 1)
    server.works(clip)


def test_an_upload_that_is_too_large_is_told_so(server: Server, clip: bytes) -> None:
    """In chunks, with no length told: the answer comes while the client still sends."""
    head = (
        b"POST /continue HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: multipart/form-data; boundary=q\r\n\r\n"
    )
    start = b'--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    sent = 0
    with server.connect() as client:
        client.sendall(head + b"%x\r\n%s\r\n" % (len(start), start))
        while not select.select([client], [], [], 0)[0]:
            client.sendall(b"10000\r\n" + bytes(65_536) + b"\r\n")
            sent += 65_536
            assert sent < 40_000_000
        answer = client.recv(4096)
        while b"}" not in answer:  # head and body may come one after the other
            answer += client.recv(4096)
        assert b" 413 " in answer.splitlines()[0]
        assert b"file_too_large" in answer
        server.works(clip)  # the only place is free while this client could still send


def test_broken_http(server: Server, clip: bytes) -> None:
    for noise in (
        b"\x16\x03\x01\x02\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /continue HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with server.connect() as client:
            client.sendall(noise)
    server.works(clip)


def taken(client: socket.socket, until: bytes = b"") -> bytes:
    """What comes: to the end of the connection, or until these bytes end it."""
    content = bytearray()
    while (not until or not content.endswith(until)) and (block := client.recv(65_536)):
        content += block
    return bytes(content)


def test_a_term_signal_ends_it_after_the_work_in_hand(folder: Path, clip: bytes) -> None:
    server = Server(folder, "--drain-seconds", "20")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="3"))
            server.until("requests_running", 1)
            server.process.send_signal(signal.SIGTERM)
            answer = b""
            while block := client.recv(65_536):
                answer += block
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        assert len(json.loads(body)["choices"][0]["tokens"]) == 225
        assert server.process.wait(HANG_SECONDS) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in server.output()
    finally:
        server.close()


def test_a_term_signal_ends_what_takes_too_long_with_what_is_made(folder: Path, clip: bytes) -> None:
    """A whole answer at the drain deadline, which says why it is short. What waits for a slot has nothing."""
    server = Server(folder, "--drain-seconds", "1", "--max-seconds", "1000", "--slots", "1")
    try:
        with server.connect() as client, server.connect() as waiting:
            client.sendall(server.form("/continue", clip, seconds="900", seed="3"))
            server.until("slots_used", 1)
            waiting.sendall(server.form("/continue", clip, seconds="900"))
            server.until("requests_running", 2)
            server.process.send_signal(signal.SIGTERM)
            refused, _, error = taken(waiting).partition(b"\r\n\r\n")
            head, _, body = taken(client).partition(b"\r\n\r\n")
            server.process.wait(HANG_SECONDS)
        assert b" 200 " in head.splitlines()[0]
        choice = json.loads(body)["choices"][0]
        assert choice["finish_reason"] == "cancelled"
        assert 75 < len(choice["tokens"]) == len(choice["logprobs"]) < 900 * 75
        assert len(base64.b64decode(choice["audio"]["data"])) == 44 + 2 * 320 * len(choice["tokens"])
        assert b" 503 " in refused.splitlines()[0]
        assert json.loads(error)["error"]["code"] == "draining"
        assert "Traceback" not in server.output()
        assert "graceful shutdown exceeded" not in server.output()
    finally:
        server.close()


def test_a_term_signal_ends_a_session_after_its_response(folder: Path, speech: Any) -> None:
    """Long after the port is closed. And its line in the log tells no query."""
    server = Server(folder, "--drain-seconds", "2", "--max-seconds", "1000")
    try:
        with websocket(f"ws://127.0.0.1:{server.port}/v1/audio/session?api_key=secret") as session:
            session.send(np.round(speech * 32767).astype("<i2").tobytes())
            session.send('{"type": "input_audio_buffer.commit"}')
            session.send('{"type": "response.create", "response": {"seconds": 900}}')
            server.until("slots_used", 1)
            server.process.send_signal(signal.SIGTERM)
            events = [json.loads(event) for event in session]
        assert session.close_code == 1001
        done, error = events[-2:]
        assert (done["type"], done["response"]["status"]) == ("response.done", "incomplete")
        assert done["response"]["choices"][0]["finish_reason"] == "cancelled"
        assert error["error"]["code"] == "draining"
        server.process.wait(HANG_SECONDS)
        assert "Traceback" not in server.output()
        assert "secret" not in server.output() and "/v1/audio/session 101" in server.output()
    finally:
        server.close()


def test_a_term_signal_cuts_what_cannot_end(folder: Path, clip: bytes) -> None:
    """A body that does not come to its end: nothing is made that could be returned."""
    server = Server(folder, "--drain-seconds", "0")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip)[:-100])
            server.until("requests_waiting", 1)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(HANG_SECONDS)
            head, _, body = taken(client).partition(b"\r\n\r\n")
            assert b" 503 " in head.splitlines()[0]
            assert json.loads(body)["error"]["code"] == "draining"
        assert "Traceback" not in server.output(), "to cut off what takes too long is no fault"
        assert "graceful shutdown exceeded" in server.output()
    finally:
        server.close()


def test_a_term_signal_is_seen_before_the_port_is_closed(folder: Path, clip: bytes) -> None:
    """By clients that connect after it: a balancer, and those that it has sent before it asked."""
    server = Server(folder, "--drain-grace-seconds", "3", "--drain-seconds", "20")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="2"))
            server.until("requests_running", 1)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(server.client.base_url.join("/readyz")).status_code != 200)
            answer = httpx.get(server.client.base_url.join("/readyz"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            url = server.client.base_url.join("/continue")
            refused = httpx.post(url, files={"file": ("a", clip)})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert httpx.get(server.client.base_url.join("/livez")).status_code == 200
            assert b" 200 " in client.recv(4_096).splitlines()[0]
        server.process.wait(HANG_SECONDS)
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        assert "Traceback" not in server.output()
    finally:
        server.close()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_second_signal_cuts(folder: Path, clip: bytes, second: signal.Signals) -> None:
    server = Server(folder, "--drain-grace-seconds", "100", "--drain-seconds", "100", "--max-seconds", "1000")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="900"))
            server.until("requests_running", 1)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.client.get("/readyz").status_code != 200)
            server.process.send_signal(second)
            assert server.process.wait(HANG_SECONDS) != 0
        assert "Traceback" not in server.output()
    finally:
        server.close()


def is_free(server: Server, clip: bytes) -> None:
    """The server's only place; it is given back a moment after the client has left."""
    server.until_free()
    server.works(clip)


@pytest.mark.parametrize("form", ["json", "wav", "pcm", "opus", "mp3"])
def test_a_stream_comes_in_chunks_and_has_an_end(server: Server, clip: bytes, form: str) -> None:
    fields = {"seconds": "1", "seed": "3", "response_format": form}
    with server.connect() as client:
        client.sendall(server.form("/continue", clip, stream="true", **fields))
        answer = taken(client, until=b"\r\n0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    assert len(re.findall(rb"(?:^|\r\n)[0-9a-f]+\r\n", body)) > 5
    files = {"file": ("a", clip)}
    stream = server.client.post("/continue", files=files, data=fields | {"stream": "true"}).content
    whole = server.client.post("/continue", files=files, data=fields)
    if form == "json":
        done = json.loads(stream.rpartition(b"data: ")[2])["choices"][0]
        assert done["logprobs"] == whole.json()["choices"][0]["logprobs"]
    else:
        skip = 44 if form == "wav" else 0
        assert stream[skip:] == whole.content[skip:]
    is_free(server, clip)


@pytest.mark.parametrize("form", ["json", "wav", "opus"])
def test_leaving_a_stream(server: Server, clip: bytes, form: str) -> None:
    before = server.metric('client_disconnects_total{stage="step"}')
    with server.connect() as client:
        client.sendall(server.form("/continue", clip, seconds="900", stream="true", response_format=form))
        assert b" 200 " in client.recv(4_096).splitlines()[0]
        client.recv(4_096)
    server.until('client_disconnects_total{stage="step"}', before + 1)
    is_free(server, clip)


@pytest.fixture(scope="module")
def long_clip(to_file: Any) -> bytes:
    """55 s: with it in front, four choices are 14 MB of events, more than sockets hold."""
    return bytes(to_file((0.2 * np.sin(np.arange(55 * 24_000) * 0.05)).astype(np.float32), form="FLAC"))


@contextmanager
def not_reading(server: Server, clip: bytes) -> Iterator[socket.socket]:
    """A client that has asked for a long stream, all of which is made while it reads nothing."""
    made = server.metric("generated_tokens_total")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        client.sendall(server.form("/continue", clip, seconds="0.6", n="4", stream="true", include_prompt="true"))
        server.until("generated_tokens_total", made + 4 * 45)
        yield client


def test_a_client_that_does_not_read(server: Server, clip: bytes, long_clip: bytes) -> None:
    """The only place serves the next one; what waited is still whole."""
    with not_reading(server, long_clip) as client:
        is_free(server, clip)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        answer = taken(client, until=b"\r\n0\r\n\r\n")
    assert answer.count(b"event: audio.done") == 1
    tokens = [json.loads(line[6:])["tokens"] for line in answer.split(b"\n") if line.startswith(b'data: {"index"')]
    assert sum(map(len, tokens)) == 4 * 45


def test_leaving_what_was_not_read(server: Server, clip: bytes, long_clip: bytes) -> None:
    left = 'client_disconnects_total{stage="send"}'
    before = server.metric(left)
    with not_reading(server, long_clip):
        is_free(server, clip)
    server.until(left, before + 1)
    is_free(server, clip)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux ends such a connection")
def test_a_client_that_never_reads_is_cut(folder: Path, clip: bytes, long_clip: bytes) -> None:
    """Its connection is gone, with all that waited for it, though it never leaves."""
    server = Server(folder, "--send-timeout-seconds", "1")
    try:
        files = Path(f"/proc/{server.process.pid}/fd")
        server.works(clip)
        before = len(list(files.iterdir()))
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.settimeout(20)
            client.connect(("127.0.0.1", server.port))
            client.sendall(server.form("/continue", long_clip, seconds="0.6", n="4", include_prompt="true"))
            server.until('client_disconnects_total{stage="stalled"}', 1)
            server.works(clip)
            until(lambda: len(list(files.iterdir())) <= before, lambda: "the connection is still open")
        assert server.metric('requests_total{outcome="disconnected",route="/continue"}') == 1
    finally:
        server.close()


@pytest.mark.parametrize("form", ["json", "pcm"])
def test_a_term_signal_ends_a_stream_with_a_word(folder: Path, clip: bytes, form: str) -> None:
    """All that was made, and `cancelled`. Bare audio has no room for a word: there the end of the body is missing."""
    server = Server(folder, "--drain-seconds", "1", "--max-seconds", "1000")
    try:
        with server.connect() as client:
            client.sendall(server.form("/continue", clip, seconds="900", stream="true", response_format=form))
            answer = client.recv(4_096)
            server.process.send_signal(signal.SIGTERM)
            answer += taken(client)
        server.process.wait(HANG_SECONDS)
        if form == "json":
            assert answer.endswith(b"\r\n0\r\n\r\n")
            name, data = answer.removesuffix(b"\r\n0\r\n\r\n").strip().rsplit(b"\n", 2)[-2:]
            assert name.endswith(b"event: audio.done")
            (choice,) = json.loads(data.removeprefix(b"data: "))["choices"]
            assert choice["finish_reason"] == "cancelled"
            assert len(choice["tokens"]) > 75
        else:
            assert not answer.endswith(b"0\r\n\r\n")
            assert len(answer) > 10_000
            assert "broke: draining" in server.output()
        assert "Traceback" not in server.output()
    finally:
        server.close()


def test_a_port_in_use_is_told_before_the_weights_are_read(tmp_path: Path) -> None:
    """In one line; weights that cannot be read would be told of otherwise. Also when the other is not ready yet."""
    (tmp_path / "config.json").write_text("no weights here")
    for other in (socket.create_server(("127.0.0.1", 0)), *bound("127.0.0.1", 0)):
        with other:
            port = other.getsockname()[1]
            command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port), "--bundle", str(tmp_path)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
        assert done.returncode == 3
        assert done.stdout + done.stderr == (
            f"error: port {port} on 127.0.0.1 is in use; choose another with --port or --host\n"
        )


def test_what_keeps_a_server_from_starting_is_a_line_of_the_log_where_that_is_json(tmp_path: Path) -> None:
    """A port in use, no bundle, weights that cannot be read, a setting out of range: one object each."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("no weights here")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        starts = (
            (["--port", str(port), "--bundle", str(damaged)], 3, f"port {port} on 127.0.0.1 is in use; choose another"),
            (["--port", "0", "--bundle", str(tmp_path / "none")], 1, f"no bundle in {tmp_path / 'none'};"),
            (["--port", "0", "--bundle", str(damaged)], 1, str(damaged)),
            (["--port", "0", "--slots", "-1"], 1, "slots: "),
        )
        for options, code, words in starts:
            done = subprocess.run(
                [sys.executable, "-m", "app.cli.main", "serve", *options], capture_output=True, text=True,
                cwd=Path(__file__).parents[2], timeout=120, env=os.environ | {"WHISPERGPT_LOG_FORMAT": "json"},
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (code, "")
            (line,) = done.stderr.splitlines()
            told = json.loads(line)
            assert (told["level"], told["logger"]) == ("error", "whispergpt")
            assert words in told["message"]


def test_a_port_is_free_again_at_once(folder: Path, clip: bytes) -> None:
    """Though connections that the last server has closed still fade away."""
    first = Server(folder)
    with first.connect() as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        taken(client)
    first.process.kill()
    first.process.wait(HANG_SECONDS)
    second = Server(folder, port=first.port)
    assert f"running on http://127.0.0.1:{first.port} " in second.output()
    first.close()
    second.close()


def test_loopback_only_by_default() -> None:
    from app.settings import Settings

    host: Any = Settings.model_fields["host"].default
    assert host == "127.0.0.1"
