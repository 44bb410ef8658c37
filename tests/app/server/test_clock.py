"""The wall clock jumps by hours, there and back, as when it is set; only `created` and the times of logs may tell."""

import base64
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.websocket import Socket

HOURS = [0, 5, -5, 7, -24 * 365]


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each look at the wall clock finds it elsewhere."""
    real, jumps = time.time, itertools.cycle(HOURS)
    monkeypatch.setattr(time, "time", lambda: real() + 3_600 * next(jumps))
    yield
    assert next(jumps) is not None


@pytest.mark.usefixtures("jumping")
def test_a_stream_is_the_same(service: Any, clip: bytes) -> None:
    fields = {"seconds": "2", "seed": "3"}
    whole = service.post("/continue", clip, data=fields)
    stream = service.post("/continue", clip, data=fields | {"stream": "true"})
    assert whole.status_code == stream.status_code == 200
    (choice,) = whole.json()["choices"]
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
    assert (
        b"".join(base64.b64decode(one["audio"]) for one in events[:-1])
        == base64.b64decode(choice["audio"]["data"])[44:]
    )
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"] == "length"
    for timings in (whole.json()["timings"], events[-1]["timings"]):
        assert all(0 <= seconds < 60 for name, seconds in timings.items() if name.endswith("_seconds")), timings


@pytest.mark.usefixtures("jumping")
def test_no_time_is_up(service: Any, clip: bytes) -> None:
    """Deadlines, heartbeats and the decoders' time are told by a clock that only goes on."""
    assert service.post("/score", clip, data={"timeout_seconds": "50"}).status_code == 200
    assert service.get("/readyz").status_code == service.get("/livez").status_code == 200
    assert service.post("/score", clip, data={"timeout_seconds": "0.001"}).status_code == 504


@pytest.mark.usefixtures("jumping")
def test_what_is_kept_stays(service: Any, clip: bytes) -> None:
    """And a session goes on: nobody was silent for hours."""
    kept = service.post("/v1/audio/prompts", clip).json()["id"]
    socket = Socket(service)
    for _ in HOURS:
        form = {name: (None, value) for name, value in {"prompt": kept, "seconds": "0.1"}.items()}
        made = service.wait(service.client.post("/continue", files=form))
        assert made.status_code == 200
        service.app.state.prompts.drop_old()
        socket.send_bytes(bytes(24_000))
        socket.send("input_audio_buffer.commit")
        socket.until("input_audio_buffer.committed")
    socket.leave()


@pytest.mark.parametrize("hours", [5, -5])
def test_nobody_is_locked_out(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Shares of a minute are counted by the wall clock (`limits`): a jump may give a share anew, and takes none."""
    service = serve(limit_requests_per_minute=2)
    real = time.time
    minute = 60 * (real() // 60) + 1  # so that the three lie within one
    monkeypatch.setattr(time, "time", lambda: minute)
    answers = [service.post("/score", clip) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    monkeypatch.setattr(time, "time", lambda: minute + 3_600 * hours)
    assert service.post("/score", clip).status_code == 200
    monkeypatch.setattr(time, "time", lambda: minute)
    back = service.post("/score", clip)
    assert back.status_code == 200 or int(back.headers["retry-after"]) <= 120
