"""What an answer tells of its upload beside the numbers, how much may be sent, and what counts as a file."""

import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile

BOUNDARY = "----b0undary"
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
SHORT = {"seconds": "0.1"}


@pytest.fixture(scope="module")
def cut(speech: Any, to_file: Any) -> bytes:
    """A FLAC that ends in the middle."""
    content: bytes = to_file(np.tile(speech, 2), form="FLAC")
    return content[: len(content) * 3 // 4]


@pytest.mark.parametrize("form", ["json", "wav", "flac", "opus", "mp3", "pcm"])
def test_a_loss_is_told(service: Any, cut: bytes, form: str) -> None:
    answer = service.post("/continue", cut, data=SHORT | {"response_format": form})
    assert answer.status_code == 200
    if form == "json":
        (warning,) = answer.json()["warnings"]
        assert set(warning) == {"code", "message"} and warning["code"] == "audio_lost"
    else:
        assert answer.headers["x-whispergpt-warning"].startswith("audio_lost: about ")


@pytest.mark.parametrize("form", ["json", "wav", "pcm"])
def test_a_stream_tells_it_too(service: Any, cut: bytes, form: str) -> None:
    """Sound in its head, events in the last one."""
    answer = service.post("/continue", cut, data=SHORT | {"response_format": form, "stream": "true"})
    assert answer.headers["x-whispergpt-warning"].startswith("audio_lost: about ")
    if form == "json":
        last = answer.text.strip().split("\n\n")[-1].split("data: ")[1]
        assert [warning["code"] for warning in json.loads(last)["warnings"]] == ["audio_lost"]


def test_each_clip_has_its_own(service: Any, clip: bytes, cut: bytes, speech: Any, to_file: Any) -> None:
    inverted = to_file(np.stack([speech, -speech], axis=1))
    silent = to_file(np.zeros(24_000, np.float32))
    white = to_file(0.1 * np.random.default_rng(4).standard_normal(4 * 24_000))
    results = service.post("/score", clip, cut, inverted, silent, b"no audio at all", white).json()["results"]
    told = [[warning["code"] for warning in result.get("warnings", [])] for result in results]
    assert told == [[], ["audio_lost"], ["phase_inverted"], ["silent_clip"], [], ["not_speech_or_piano"]]


@pytest.mark.parametrize("stream", ["false", "true"])
def test_nothing_is_told_of_a_good_clip(service: Any, clip: bytes, stream: str) -> None:
    answer = service.post("/continue", clip, data=SHORT | {"stream": stream})
    assert "warnings" not in answer.text
    assert "x-whispergpt-warning" not in answer.headers


NAMES = [
    "filename*=utf-8''na%C3%AFve%20clip.flac",
    "filename*=iso-8859-1'en'na%EFve%20clip.flac",
    "FileName*=UTF-8''na%C3%AFve%20clip.flac",
    "filename*0*=utf-8''na%C3%AFve; filename*1=\" clip.flac\"",
]
ODD = [
    "filename*=hex''00", "filename*=idna''%ff", "filename*=utf-8''%22%5c%00", "filename*=''",
    "filename*=utf-8''%ed%a0%80",
]  # fmt: skip


def formed(disposition: str, content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize("disposition", NAMES)
def test_an_extended_filename_alone_is_a_filename(service: Any, clip: bytes, disposition: str) -> None:
    """RFC 5987 and RFC 2231: what names a file in other letters than ASCII."""
    answer = service.post("/score", content=formed(disposition, clip), headers=MULTIPART)
    assert [result["filename"] for result in answer.json()["results"]] == ["naïve clip.flac"]


@pytest.mark.parametrize("disposition", ODD)
def test_an_odd_filename_is_no_error(service: Any, clip: bytes, disposition: str) -> None:
    answer = service.post("/score", content=formed(disposition, clip), headers=MULTIPART)
    assert answer.status_code == 200
    assert "error" not in answer.json()["results"][0]


def test_a_plain_filename_is_the_one_that_counts(service: Any, clip: bytes) -> None:
    content = formed("filename=\"a.flac\"; filename*=utf-8''b.flac", clip)
    (result,) = service.post("/score", content=content, headers=MULTIPART).json()["results"]
    assert result["filename"] == "a.flac"


def test_the_longest_clip_is_taken_as_wav() -> None:
    """The limits agree: an hour of 16 bits at 24 kHz is as long as may be scored, and fits into a body."""
    from app.settings import Settings

    settings = Settings()
    wav = 44 + settings.max_score_seconds * 24_000 * 2
    assert wav + 4_096 < settings.max_upload_mib * 2**20


def test_what_is_too_large_says_what_to_send(serve: Any, speech: Any, to_file: Any) -> None:
    """More is taken of PCM than of what is small for its length; both refusals say how to come within the limits."""
    service = serve(max_upload_mib=0.5, max_compressed_mib=0.1)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 110_000)
    assert service.post("/score", to_file(noise, subtype="PCM_16")).status_code == 200
    for content in (to_file(noise, form="FLAC"), bytes(200_000), to_file(np.tile(noise, 3), subtype="PCM_16")):
        answer = service.post("/score", content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    assert "send FLAC or Opus" in answer.json()["error"]["message"]


def test_more_formats(service: Any, speech: Any) -> None:
    for form in ("AU", "CAF", "W64"):
        out = io.BytesIO()
        soundfile.write(out, speech, 24_000, format=form)
        assert service.post("/score", out.getvalue()).status_code == 200
