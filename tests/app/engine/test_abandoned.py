"""What a request held is free when it is over, however it ends: at once, without Python's collector of circles."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from app.audio.decode import decode
from tests.support.engine import Visitor, busy
from tests.support.memory import bytes_kept
from tests.support.service import sound
from tests.support.waiting import HANG_SECONDS, until
from tests.support.websocket import Socket

FEW = 1_500_000  # bytes; what is looked for has several times as many
PATHS = ["/score", "/continue", "/v1/audio/prompts"]


@pytest.fixture(scope="module")
def long() -> bytes:
    """400 s, 38 MB of samples."""
    return sound(np.zeros(8_000 * 400, np.int16), 8_000, "FLAC")


@pytest.fixture(scope="module")
def middling() -> bytes:
    """60 s, 5.8 MB of samples."""
    return sound(np.zeros(8_000 * 60, np.int16), 8_000, "FLAC")


@pytest.fixture
def service(serve: Any, clip: bytes) -> Any:
    """One thread of each kind and one slot; all have been at work before."""
    made = serve(threads=1, slots=1, max_prompt_seconds=1_000, max_seconds=4_000)
    made.post("/score", clip)
    made.post("/continue", clip, data={"seconds": "0.1"})
    return made


def steps_beyond(service: Any, count: float) -> Callable[[], bool]:
    return lambda: bool(service.value("step_seconds_count") > count)


def few(kept: Callable[[], int]) -> None:
    """What the threads have in hand is gone in a moment."""
    until(lambda: kept() <= FEW, lambda: f"{kept()} bytes are kept", 0.05)


@pytest.mark.parametrize("path", PATHS)
def test_leaving_while_waiting(service: Any, long: bytes, path: str) -> None:
    with bytes_kept() as kept, busy(service):
        decoded = service.value("audio_decode_seconds_count")
        visitor = Visitor(service, path, long)
        until(lambda: service.value("audio_decode_seconds_count") > decoded)
        until(lambda: service.app.state.decoders.borrowed_tokens == 0)
        assert kept() > 30e6, "the clip is held while it waits"
        visitor.leave()
        few(kept)  # though no thread has come to it


@pytest.mark.parametrize("path", PATHS)
def test_leaving_while_the_file_is_decoded(service: Any, long: bytes, path: str) -> None:
    with bytes_kept() as kept:
        visitor = Visitor(service, path, long)
        until(lambda: service.app.state.decoders.borrowed_tokens > 0)
        visitor.leave()
        few(kept)


@pytest.mark.parametrize("path", PATHS)
def test_leaving_while_it_is_read(service: Any, long: bytes, path: str) -> None:
    """Scored, or as a prompt; twice, so that what one leaves until the next comes would be seen, too."""
    with bytes_kept() as kept:
        for _ in range(2):
            visitor = Visitor(service, path, long)
            until(lambda: service.value("requests_running") == 1)
            assert kept() > 30e6
            visitor.leave()
            few(kept)


def test_leaving_while_all_slots_are_taken(service: Any, clip: bytes, middling: bytes) -> None:
    first = Visitor(service, "/continue", clip, seconds="3000")  # it shall not end before, and write its answer
    steps = service.value("step_seconds_count")
    until(lambda: service.value("slots_used") == 1 and service.value("step_seconds_count") > steps)  # it has its arrays
    with bytes_kept() as kept:
        read = service.value("prefill_seconds_count")
        visitor = Visitor(service, "/continue", middling)
        until(lambda: service.value("prefill_seconds_count") > read)
        visitor.leave()
        few(kept)  # though the slot is not free
    first.leave()


@pytest.mark.parametrize("stream", ["true", "false"])
def test_leaving_while_it_is_made(service: Any, clip: bytes, stream: str) -> None:
    with bytes_kept() as kept:
        for _ in range(2):
            more_steps = steps_beyond(service, service.value("step_seconds_count") + 3)
            visitor = Visitor(service, "/continue", clip, seconds="900", n="4", stream=stream)
            until(more_steps)
            assert kept() > 3e6
            visitor.leave()
            few(kept)


def test_leaving_a_session(service: Any) -> None:
    """20 s were said, and have been read but for the last; twice, as above."""
    with bytes_kept() as kept:
        for _ in range(2):
            socket = Socket(service)
            for _ in range(20):
                socket.send_bytes(bytes(48_000))
            for _ in range(97):
                socket.take("input_audio.scored")
            assert kept() > 1.8e6
            socket.leave()
            del socket
            few(kept)


@pytest.mark.parametrize(("path", "fields"), [
    ("/score", {}), ("/continue", {"seconds": "15", "n": "4"}),
    ("/continue", {"seconds": "15", "n": "4", "stream": "true"}),
])  # fmt: skip
def test_leaving_with_the_answer_unread(service: Any, clip: bytes, path: str, fields: dict[str, Any]) -> None:
    with bytes_kept() as kept:
        visitor = Visitor(service, path, clip, takes=0, **fields)
        until(lambda: len(visitor.sent) == 2 and service.app.state.engine.in_use == 0)
        assert path == "/score" or kept() > 2e6
        visitor.leave()
        visitor.sent.clear()
        few(kept)


@pytest.mark.parametrize(("path", "fields"), [
    ("/score", {"prompt_seconds": "3000"}), ("/score", {"window_start": "500"}), ("/score", {"timeout_seconds": "2"}),
    ("/continue", {"timeout_seconds": "2"}),
], ids=str)  # fmt: skip
def test_an_error_keeps_nothing(service: Any, middling: bytes, path: str, fields: dict[str, str]) -> None:
    late = "timeout_seconds" in fields
    with bytes_kept() as kept, busy(service) if late else nullcontext():
        assert service.post(path, middling, data=fields).status_code == (504 if late else 422)
        few(kept)


def test_a_bad_clip_is_gone_when_the_next_one_is_decoded(
    service: Any, middling: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clip's error is in the answer, and must not hold the clip until then."""
    decoded = 0

    with bytes_kept() as kept:

        def watched(*given: Any, **more: Any) -> Any:
            nonlocal decoded
            few(kept)  # of the clips before it
            audio = decode(*given, **more)
            assert kept() > 5.7e6
            decoded += 1
            return audio

        monkeypatch.setattr("app.server.uploads.decode", watched)
        answer = service.post("/score", *[middling] * 4, data={"window_start": "500"})
    assert answer.status_code == 422
    assert decoded == 4


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}, {"stream": "true", "include_prompt": "true"}], ids=str)
def test_a_bug_keeps_nothing(
    service: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """In the middle of a continuation."""
    workers = service.app.state.engine.workers
    distribute, frames = workers._distribute, 0

    def broken(*given: Any) -> Any:
        nonlocal frames
        frames += 1
        return distribute(*given) if frames < 300 else 1 / 0

    monkeypatch.setattr(workers, "_distribute", broken)
    with bytes_kept() as kept:
        visitor = Visitor(service, "/continue", clip, seconds="900", n="4", **fields)
        visitor.done.result(HANG_SECONDS)
        visitor.sent.clear()
        few(kept)
