"""The log: a line a request that tells what is known of it, and never a key."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app.server.logs import STRUCK_OUT, JsonFormatter, TextFormatter, configuration
from app.settings import Settings
from tests.support.process import Server

KEY, OTHER, WRONG = "sesame-4711", 'open "the" door', "wrong-0815"
KEYS = {"api_keys": {"alice": KEY, "bob": OTHER}}
SENT = {"x-api-key": KEY}


@contextmanager
def captured(service: Any, form: str = "json", level: str = "debug") -> Iterator[Callable[[], list[str]]]:
    """What a server with these settings writes, line by line."""
    settings = service.app.state.settings
    options = configuration(Settings(log_format=form, log_level=level, api_keys=settings.api_keys))
    made = dict(options["formatters"]["lines"])
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(made.pop("()")(**made))
    logger = logging.getLogger("whispergpt")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(options["loggers"]["whispergpt"]["level"])
    try:
        yield lambda: out.getvalue().splitlines()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def last(lines: Callable[[], list[str]]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(lines()[-1])
    return line


def test_a_request_has_a_line(serve: Any, clip: bytes) -> None:
    service = serve(**KEYS)
    with captured(service) as lines:
        answer = service.post(
            "/continue", clip, data={"seconds": "0.4", "n": "2"}, headers=SENT | {"x-request-id": "a1"}
        )
        line = last(lines)
        assert (line["level"], line["logger"], line["message"]) == (
            "info",
            "whispergpt.access",
            "POST /continue 200 ok",
        )
        told = {"request_id": "a1", "key": "alice", "method": "POST", "route": "/continue", "status": 200,
                "outcome": "ok", "n": 2, "streamed": False, "format": "json", "finish_reason": "length",
                "made_audio_seconds": 0.8}  # fmt: skip
        assert {name: line[name] for name in told} == told
        assert line["audio_seconds"] == pytest.approx(32_111 / 24_000, abs=1e-5)
        spent = answer.json()["timings"]
        for name in ("queue_seconds", "prefill_seconds", "first_audio_seconds"):
            assert line[name] == pytest.approx(spent[name], abs=1e-5)
        assert 0 < line["decode_seconds"] < line["seconds"]
        assert len(lines()) == 1, "one a request"


@pytest.mark.parametrize("form", ["pcm", "json"])
def test_a_stream_has_a_line_at_its_end(service: Any, clip: bytes, form: str) -> None:
    with captured(service) as lines:
        service.post("/continue", clip, data={"seconds": "0.4", "stream": "true", "response_format": form})
        line = last(lines)
    assert line["streamed"] and line["made_audio_seconds"] == 0.4 and line["key"] is None
    assert line["first_audio_seconds"] > 0


def test_a_score_has_a_line(service: Any, clip: bytes) -> None:
    with captured(service) as lines:
        service.post("/score", clip, b"", clip)
        line = last(lines)
    assert line["clips"] == 3 and line["audio_seconds"] == pytest.approx(2 * 32_111 / 24_000, abs=1e-5)


def test_refusals_tell_their_code(serve: Any, clip: bytes) -> None:
    service = serve(**KEYS)
    with captured(service) as lines:
        service.post("/continue", b"no audio at all", headers=SENT)
        assert (last(lines)["status"], last(lines)["error"]) == (415, "unsupported_format")
        service.post("/score", clip)
        assert (last(lines)["status"], last(lines)["error"], last(lines)["key"]) == (401, "invalid_api_key", None)
        service.get("/nowhere/at/all")
        assert (last(lines)["status"], last(lines)["route"]) == (404, "other")


def test_probes_are_told_when_they_fail(serve: Any) -> None:
    service = serve()
    with captured(service, level="info") as lines:
        for path in ("/livez", "/readyz", "/metrics"):
            service.get(path)
        assert lines() == []
        service.app.state.engine.draining = True
        service.get("/readyz")
        assert last(lines)["error"] == "draining"


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_line_holds_a_key(serve: Any, clip: bytes, form: str) -> None:
    """Right or wrong, wherever it is put, and whatever fails."""
    service = serve(**KEYS, limit_requests_per_minute=20)

    async def broken(request_key: str = "") -> None:
        raise RuntimeError(f"{KEY} and {OTHER}")

    service.app.add_api_route("/broken", broken)
    with captured(service, form) as lines:
        for key in (KEY, OTHER, WRONG):
            for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}, {"authorization": key},
                            {"authorization": f"Basic {key}"}, {"referer": f"http://x/?key={key}"},
                            {"cookie": f"key={key}"}, {"user-agent": key}):  # fmt: skip
                for path in ("/v1/models", "/livez", "/broken", "/nowhere"):
                    service.get(path, headers=headers)
                service.post("/score", clip, headers=headers)
            for path in (f"/v1/models?api_key={quote(key)}", f"/{quote(key)}", f"/continue/{quote(key)}",
                         f"/broken?request_key={quote(key)}", f"/static/{quote(key)}"):  # fmt: skip
                service.get(path)
                service.post(path, clip, data={key: key, "seconds": key})
            service.wait(service.client.request("POST", "/score", files={"file": (key, b"no audio")}, headers=SENT))
        service.get("/v1/models", headers={"x-request-id": KEY})
        written = lines()
    assert len(written) > 100
    for line in written:
        for key in (KEY, OTHER, WRONG, quote(OTHER), json.dumps(OTHER)[1:-1]):
            assert key not in line, line
    assert any("RuntimeError" in line and STRUCK_OUT in line for line in written), "the fault itself is told"
    if form == "json":
        assert {json.loads(line)["key"] for line in written if "key" in json.loads(line)} == {None, "alice", "bob"}


def test_a_line_is_one_line() -> None:
    """Whatever it holds."""
    record = logging.LogRecord("a", logging.INFO, "f", 1, 'x\ny "%s"', ("\u2028\0\ud800",), None)
    record.facts = {"path": Path("/x"), "nan": 0.123456789}
    assert json.loads(JsonFormatter(pid=7).format(record))["pid"] == 7, "of several processes, the one that writes"
    line = JsonFormatter().format(record)
    assert "pid" not in json.loads(line)
    assert len(line.splitlines()) == 1
    line.encode()
    read = json.loads(line)
    assert read["message"].startswith('x\ny "') and read["nan"] == 0.123457


def test_short_keys_do_not_garble_lines() -> None:
    record = logging.LogRecord("a", logging.INFO, "f", 1, "a line", (), None)
    assert "a line" in TextFormatter(keys=["a", "e"]).format(record)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("processes", [True, False])
def test_all_that_a_process_writes_is_json(saved_bundle: Path, to_file: Any, speech: Any, processes: bool) -> None:
    """From its start to its end, at level debug, with settings that do not exist, damaged MP3s and what is no HTTP."""
    flags = ["--log-format", "json", "--log-level", "debug", "--api-keys", json.dumps(KEYS["api_keys"])]
    file = saved_bundle.parent / "server.toml"
    file.write_text("quue = 4\n")
    flags += ["--config", str(file), *([] if processes else ["--no-decoder-processes"])]
    server = Server(saved_bundle, *flags, WHISPERGPT_TREADS="2")
    good = to_file(speech, 24_000, "MP3")
    bad = bytearray(good)
    for at in range(500, len(bad), 97):
        bad[at] ^= 0x55
    for content in (good, bytes(bad), good[: len(good) // 2], bytes(bad[:700])):
        server.client.post("/score", files={"file": ("a.mp3", content)}, headers=SENT)
    server.client.get(f"/v1/models?key={KEY}")
    web_socket = (
        f"GET /x?{KEY} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nx-api-key: {KEY}\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    two_hosts = f"GET /?{KEY} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    for hostile in ("\0nonsense\r\n\r\n", two_hosts, web_socket):
        with server.connect() as client:
            client.sendall(hostile.encode())
            client.recv(1_000)
    server.process.terminate()
    server.process.wait(30)
    written = server.output()
    server.close()
    assert KEY not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    unknown = [line for line in lines if line["message"].startswith("unknown setting ")]
    assert [line["message"].split()[-3] for line in unknown] == ["quue", "WHISPERGPT_TREADS"]
    assert {line["level"] for line in unknown} == {"warning"}
    scored = [line for line in lines if line.get("route") == "/score"]
    assert [line["key"] for line in scored] == ["alice"] * 4
    refused = [line for line in lines if line.get("error") == "malformed_request"]
    assert len(refused) >= 2


def test_prints_of_libraries_become_lines() -> None:
    code = (
        "import logging.config, os, time\n"
        "from app.server.logs import configuration, take_prints\nfrom app.settings import Settings\n"
        "take_prints()\n"
        "logging.config.dictConfig(configuration(Settings(log_format='json', log_level='debug')))\n"
        "os.write(2, b'[mpg123] part of a line')\nos.write(2, b' and its end\\n\\xff\\n')\ntime.sleep(0.5)\n"
        "raise SystemExit('an end of ours')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=dict(os.environ)
    )
    first, second, third = done.stderr.splitlines()
    assert (json.loads(first)["logger"], json.loads(first)["message"]) == (
        "whispergpt.libraries", "[mpg123] part of a line and its end",
    )  # fmt: skip
    assert json.loads(second)["message"] == "\\xff"
    assert third == "an end of ours"
