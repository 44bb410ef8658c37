"""The error table of API.md, row by row; after each bad request the next good one works, and nothing is held."""

import asyncio
import copy
import errno
import gc
import io
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from app.server.multipart import FIELD_BYTES, STORAGE_FULL
from tests.support.decoding import Decoded
from tests.support.service import sound

BOUNDARY = "----b0undary"
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
TONE = (0.3 * np.sin(np.arange(24_000) * 0.05)).astype(np.float32)


def with_nan() -> bytes:
    samples = TONE.copy()
    samples[20_000] = np.nan
    return sound(samples, subtype="FLOAT")


def silence(minutes: int, form: str = "FLAC", rate: int = 8_000) -> bytes:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1, format=form, subtype="OPUS" if form == "OGG" else "PCM_16") as file:
        for _ in range(minutes):
            file.write(np.zeros(rate * 60, np.int16))
    return out.getvalue()


def at_rate(rate: int) -> bytes:
    """A WAV whose header says so: libsndfile would not write all of these."""
    content = bytearray(sound(TONE))
    content[24:28] = rate.to_bytes(4, "little")
    return bytes(content)


BAD_AUDIO: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "empty": (lambda: b"", 422, "audio_invalid"),
    "text": (lambda: b"This is not audio. " * 50, 415, "unsupported_format"),
    "utf-16 text": (lambda: "This is not audio. ".encode("utf-16") * 50, 415, "unsupported_format"),
    "one byte": (lambda: b"R", 415, "unsupported_format"),
    "zip": (lambda: b"PK\x03\x04" + bytes(500), 415, "unsupported_format"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), 415, "unsupported_format"),
    "playlist": (lambda: b"#EXTM3U\n/etc/passwd\n", 415, "unsupported_format"),
    "bare header": (lambda: sound(TONE)[:12], 422, "audio_invalid"),
    "0 samples": (lambda: sound(TONE[:0]), 422, "audio_invalid"),
    "0 samples, FLAC": (lambda: sound(TONE[:0], form="FLAC"), 422, "audio_invalid"),
    "1 sample": (lambda: sound(TONE[:1]), 422, "audio_too_short"),
    "6 frames": (lambda: sound(TONE[: 7 * 320 - 1]), 422, "audio_too_short"),
    "NaN": (with_nan, 422, "audio_invalid"),
    "infinite": (lambda: sound(np.full(24_000, np.inf, np.float32), subtype="FLOAT"), 422, "audio_invalid"),
    "huge values": (lambda: sound(TONE * np.float32(1e30), subtype="FLOAT"), 422, "audio_invalid"),
    "noise after an MP4 head": (lambda: b"\0\0\0\x20ftypM4A " + bytes(range(256)) * 9, 422, "audio_invalid"),
    "noise after a WebM head": (lambda: b"\x1aE\xdf\xa3" + bytes(range(256)) * 9, 422, "audio_invalid"),
    "noise after an Ogg head": (lambda: b"OggS" + bytes(range(256)) * 9, 422, "audio_invalid"),
    "noise after an MP3 head": (lambda: b"ID3\x04" + bytes(300), 422, "audio_invalid"),
    "0 Hz": (lambda: at_rate(0), 422, "audio_invalid"),
    "1 Hz": (lambda: at_rate(1), 422, "audio_invalid"),
    "4 GHz": (lambda: at_rate(2**32 - 1), 422, "audio_invalid"),
    "200 channels": (lambda: sound(np.zeros((300, 200), np.float32)), 422, "audio_invalid"),
}


def refused(answer: Any, status: int, code: str, param: str | None = None) -> None:
    """The one envelope, and nothing in it that tells of the inside."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id"}
    assert error["code"] == code, error
    if param is not None:
        assert error["param"] == param, error
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    for inside in ("Traceback", "/tmp", ".py", "site-packages", "0x"):
        assert inside not in answer.text


def works(service: Any, clip: bytes) -> None:
    """The next good request is answered, and nothing is held."""
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200
    assert service.app.state.engine.in_use == 0


@pytest.mark.parametrize("name", BAD_AUDIO)
@pytest.mark.parametrize("path", ["/continue", "/score"])
def test_bad_audio(service: Any, clip: bytes, name: str, path: str) -> None:
    make, status, code = BAD_AUDIO[name]
    refused(service.post(path, make()), status, code, "file")
    works(service, clip)


@pytest.mark.parametrize(("path", "cap"), [("/continue", 60), ("/score", 3_600)])
def test_two_hours_of_silence(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch, path: str, cap: int) -> None:
    """Half a megabyte of FLAC; decoding stops at the cap."""
    content = silence(120)
    assert len(content) < 600_000
    service, decoded = serve(), Decoded(monkeypatch)
    refused(service.post(path, content), 413, "audio_too_long", "file")
    assert cap < decoded.seconds < 1.1 * cap
    works(service, clip)


def test_a_small_opus_file_of_long_silence(service: Any, clip: bytes) -> None:
    content = silence(10, "OGG")
    assert len(content) < 300_000
    refused(service.post("/continue", content), 413, "audio_too_long", "file")
    works(service, clip)


def test_an_open_window_is_limited_and_a_closed_one_is_not(service: Any) -> None:
    content = silence(120)
    fields = {"seconds": "0.1", "prompt_start": "10", "prompt_end": "11"}
    assert service.post("/continue", content, data=fields).status_code == 200
    refused(service.post("/continue", content, data={"prompt_end": "100"}), 413, "audio_too_long", "prompt_end")
    refused(service.post("/continue", content, data={"prompt_start": "7000"}), 413, "audio_too_long", "prompt_start")


def test_a_prompt_as_long_as_the_message_asks_for_is_taken(service: Any, speech: Any, to_file: Any) -> None:
    answer = service.post("/continue", to_file(speech[:2_000]))
    assert answer.json()["error"]["code"] == "audio_too_short"
    seconds = float(re.findall(r"[\d.]+", answer.json()["error"]["message"])[0])
    asked = to_file(speech[: round(seconds * 24_000)])
    assert service.post("/continue", asked, data={"seconds": "0.1"}).status_code == 200


def test_window_beyond_the_end(service: Any, clip: bytes) -> None:
    refused(service.post("/continue", clip, data={"prompt_start": "30"}), 422, "audio_too_short", "prompt_start")
    works(service, clip)


BAD_FIELDS = [
    ("seconds", "0"), ("seconds", "0.05"), ("seconds", "31"), ("seconds", "-1"), ("seconds", "1e308"),
    ("seconds", "nan"), ("seconds", "inf"), ("seconds", "five"), ("seconds", ""), ("temperature", "-0.1"),
    ("temperature", "2.1"),
    ("temperature", "nan"), ("top_k", "-1"), ("top_k", "1.5"), ("top_k", "many"), ("top_p", "0"), ("top_p", "1.1"),
    ("seed", "-1"), ("seed", "x"), ("seed", str(2**63)), ("n", "0"), ("n", "5"), ("prompt_start", "-1"),
    ("prompt_start", "1e308"), ("prompt_end", "0"), ("prompt_end", "1e308"), ("include_prompt", "perhaps"),
    ("response_format", "ogg"), ("stream", "perhaps"),
    ("timeout_seconds", "0"), ("timeout_seconds", "-5"), ("unknown", "1"), ("Seconds", "1"), ("file", "text"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_bad_field_of_continue(service: Any, clip: bytes, field: str, value: str) -> None:
    refused(service.post("/continue", clip, data={field: value}), 422, "invalid_parameter", field)
    assert service.app.state.engine.in_use == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt_seconds", "-1"), ("prompt_seconds", "1e308"), ("detail", "all"), ("window_step", "0"),
     ("top_logprobs", "21"), ("top_logprobs", "-1"), ("top_logprobs", "1"), ("response_format", "xml"),
     ("seconds", "3"), ("timeout_seconds", "0")],
)  # fmt: skip
def test_bad_field_of_score(service: Any, clip: bytes, field: str, value: str) -> None:
    refused(service.post("/score", clip, data={field: value}), 422, "invalid_parameter", field)


def test_fields_that_do_not_go_together(service: Any, clip: bytes) -> None:
    window = {"prompt_start": "1", "prompt_end": "0.5"}
    refused(service.post("/continue", clip, data=window), 422, "invalid_parameter", "prompt_end")
    several = {"n": "2", "response_format": "wav"}
    refused(service.post("/continue", clip, data=several), 422, "invalid_parameter", "n")
    whole_only = {"stream": "true", "response_format": "flac"}
    refused(service.post("/continue", clip, data=whole_only), 422, "invalid_parameter", "stream")


@pytest.mark.parametrize(
    ("path", "count", "most"),
    [("/continue", 2, "one file"), ("/continue", 3, "one file"), ("/score", 33, "32 files at most")],
)
def test_wrong_number_of_files(service: Any, clip: bytes, path: str, count: int, most: str) -> None:
    answer = service.post(path, *[clip] * count)
    refused(answer, 422, "invalid_parameter", "file")
    assert answer.json()["error"]["message"] == f"file: send {most}"
    works(service, clip)


def test_field_given_twice(service: Any, clip: bytes) -> None:
    refused(service.post("/continue", clip, data={"n": ["1", "2"]}), 422, "invalid_parameter", "n")


def part(name: str, value: bytes, extra: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


def test_no_file(service: Any, clip: bytes) -> None:
    body = part("seconds", b"3") + f"--{BOUNDARY}--\r\n".encode()
    refused(service.post("/continue", content=body, headers=MULTIPART), 422, "invalid_parameter", "file")


def test_file_in_another_field(service: Any, clip: bytes) -> None:
    body = part("audio", clip, '; filename="a.flac"') + f"--{BOUNDARY}--\r\n".encode()
    refused(service.post("/continue", content=body, headers=MULTIPART), 422, "invalid_parameter", "audio")


MALFORMED: dict[str, dict[str, Any]] = {
    "no body": {},
    "json": {"json": {"seconds": 3}},
    "urlencoded": {"data": {"seconds": "3"}},
    "no boundary": {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
    "other boundary": {
        "content": part("seconds", b"3"),
        "headers": {"content-type": "multipart/form-data; boundary=q"},
    },
    "noise": {"content": bytes(range(256)) * 20, "headers": MULTIPART},
    "no name": {"content": f"--{BOUNDARY}\r\n\r\n3\r\n--{BOUNDARY}--\r\n".encode(), "headers": MULTIPART},
    "long field": {"content": part("seconds", b"3" * 2_000_000), "headers": MULTIPART},
    "many fields": {"content": part("seconds", b"3") * 100, "headers": MULTIPART},
    "strange charset": {
        "content": part("\\ud800", b"3"),
        "headers": {"content-type": f"multipart/form-data; charset=unicode_escape; boundary={BOUNDARY}"},
    },
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cut", [5, 60, 200, 20_000], ids=str)
def test_form_that_ends_in_the_middle(service: Any, clip: bytes, cut: int) -> None:
    """It is malformed, and its half file is closed (a ResourceWarning would fail the test)."""
    body = part("seconds", b"0.1") + part("file", clip, '; filename="a"')
    for path in ("/continue", "/score"):
        refused(service.post(path, content=body[:-cut], headers=MULTIPART), 400, "malformed_form")
    gc.collect()
    works(service, clip)


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("path", ["/continue", "/score"])
def test_malformed_form(service: Any, clip: bytes, name: str, path: str) -> None:
    refused(service.post(path, **MALFORMED[name]), 400, "malformed_form")
    works(service, clip)


def test_unknown_path_and_method(service: Any) -> None:
    refused(service.get("/nowhere"), 404, "not_found")
    answer = service.get("/continue")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_too_many_bytes(serve: Any, clip: bytes) -> None:
    """With a true length, and in chunks that tell none."""
    service = serve(max_upload_mib=0.25)
    too_much = bytes(300_000)
    refused(service.post("/continue", too_much), 413, "file_too_large", "file")
    taken = 0

    async def chunks() -> Any:
        nonlocal taken
        yield part("file", b"RIFF", '; filename="a.wav"')[:-2]
        for _ in range(1_000):
            taken += 1
            yield bytes(10_000)

    refused(service.post("/continue", content=chunks(), headers=MULTIPART), 413, "file_too_large", "file")
    assert taken < 40
    works(service, clip)


@pytest.mark.parametrize(("size", "status"), [(FIELD_BYTES, 422), (FIELD_BYTES + 1, 400)])
def test_a_text_field_is_a_number_or_a_word(service: Any, clip: bytes, size: int, status: int) -> None:
    """One that is longer is not taken into memory."""
    body = part("seconds", b"3" * size) + part("file", clip, '; filename="a"') + f"--{BOUNDARY}--\r\n".encode()
    assert service.post("/continue", content=body, headers=MULTIPART).status_code == status


def test_bodies_share_a_budget(serve: Any, clip: bytes) -> None:
    """Whoever goes beyond it is refused, and told when to come back; the others' bodies arrive whole."""
    service = serve(max_upload_mib=1, max_bodies_mib=1)
    bodies, half = service.app.state.bodies, part("file", bytes(600_000), '; filename="a.wav"')

    async def waits(arrived: asyncio.Event, until: asyncio.Event) -> Any:
        yield half
        arrived.set()
        await until.wait()
        yield f"--{BOUNDARY}--\r\n".encode()

    async def both() -> tuple[Any, Any]:
        arrived, until = asyncio.Event(), asyncio.Event()
        post = partial(service.client.post, "/continue", headers=MULTIPART)
        first = asyncio.create_task(post(content=waits(arrived, until)))
        await arrived.wait()
        second = await post(content=half)
        assert bodies.held == len(half), "a refused body is gone"
        until.set()
        return await first, second

    first, second = service.wait(both())
    refused(second, 429, "overloaded")
    assert int(second.headers["retry-after"]) > 0
    refused(first, 415, "unsupported_format")
    assert bodies.held == 0
    assert service.value("rejected_total", reason="bodies") == 1
    works(service, clip)


def test_one_body_may_be_as_large_as_the_settings_say(serve: Any, clip: bytes) -> None:
    """Whatever the budget of all."""
    service = serve(max_upload_mib=1, max_bodies_mib=0.001)
    works(service, clip)
    refused(service.post("/continue", bytes(2**20)), 413, "file_too_large", "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the server's fault and passes: no 500, and no 4xx either. Small uploads need no disk."""
    service = serve()
    opened: list[Any] = []

    def full(**_: Any) -> Any:
        opened.append(Path("/dev/full").open("w+b", buffering=0))  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for path, count in (("/continue", 1), ("/score", 3), ("/v1/audio/prompts", 1)):
        refused(service.post(path, *[bytes(2**21)] * count), 507, "storage_full")
    assert service.value("rejected_total", reason="storage_full") == 3
    assert service.app.state.bodies.held == 0
    assert opened and all(file.closed for file in opened)
    works(service, clip)


def test_no_folder_for_uploads(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python says when it finds no folder that it can write to: also when the disk is full from the start."""
    service = serve()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    refused(service.post("/continue", bytes(2**21)), 507, "storage_full")
    works(service, clip)


@pytest.mark.parametrize("number", sorted(STORAGE_FULL), ids=errno.errorcode.__getitem__)
def test_a_disk_that_cannot_be_written_to(
    serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Full, read-only, not ours, or broken: at the file's start, and in the middle of it."""
    service = serve()

    class Broken(io.BytesIO):
        def write(self, *_: Any) -> int:
            raise OSError(number, os.strerror(number))

    def no_file(**_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    for temporary in (no_file, lambda **_: Broken()):
        monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
        answer = service.post("/score", bytes(2**21))
        refused(answer, 507, "storage_full")
        assert "/" not in answer.json()["error"]["message"], "no path"
    assert service.app.state.bodies.held == 0
    works(service, clip)


def test_a_folder_for_uploads_that_goes_and_comes_back(serve: Any, clip: bytes, tmp_path: Path) -> None:
    service, before, folder = serve(), tempfile.tempdir, tmp_path / "uploads"
    folder.mkdir()
    tempfile.tempdir = str(folder)
    try:
        folder.rmdir()
        refused(service.post("/score", bytes(2**21)), 507, "storage_full")
        works(service, clip)  # small uploads need none
        folder.mkdir()
        assert service.post("/score", bytes(2**21)).status_code == 415  # it was kept, and is no audio
        assert not list(folder.iterdir())
    finally:
        tempfile.tempdir = before


def test_a_body_that_does_not_arrive(serve: Any, clip: bytes) -> None:
    service = serve(upload_timeout_seconds=0.2)

    async def chunks() -> Any:
        yield part("file", b"RIFF", '; filename="a.wav"')
        await asyncio.sleep(5)

    refused(service.post("/continue", content=chunks(), headers=MULTIPART), 408, "upload_timeout")
    works(service, clip)


def test_a_fault_of_ours(serve: Any, clip: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A bug is told without its inside; the log has it, under the request's id."""
    service = serve()

    async def broken() -> None:
        raise RuntimeError("secret of the inside")

    service.app.add_api_route("/broken", broken)
    answer = service.get("/broken", headers={"x-request-id": "mine-1"})
    refused(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "mine-1" in caplog.text
    assert "secret of the inside" in caplog.text
    works(service, clip)


def test_draining(serve: Any, clip: bytes) -> None:
    service = serve()
    service.app.state.engine.draining = True
    for answer in (service.post("/continue", clip), service.post("/score", clip), service.get("/readyz")):
        refused(answer, 503, "draining")
    assert service.get("/livez").status_code == 200


def test_not_ready(serve: Any, clip: bytes) -> None:
    service = serve()
    service.wait(asyncio.to_thread(service.app.state.engine.stop))
    for answer in (service.post("/continue", clip), service.get("/readyz"), service.get("/health")):
        refused(answer, 503, "not_ready")
    assert service.get("/livez").status_code == 200


def test_a_model_gone_wrong(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN weights give a 500 and a count, never NaN in an answer."""
    service = serve()
    engine = service.app.state.engine
    broken = copy.deepcopy(engine.bundle)
    with torch.no_grad():
        broken.lm.head.weight.fill_(torch.nan)
    monkeypatch.setattr(engine.first, "bundle", broken)
    refused(service.post("/score", clip), 500, "internal_error")
    refused(service.post("/continue", clip, data={"seconds": "0.1"}), 500, "internal_error")
    assert service.value("nonfinite_logits_total") == 2
    monkeypatch.undo()
    works(service, clip)
