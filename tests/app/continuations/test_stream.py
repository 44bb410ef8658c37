"""POST /continue with stream=true: the stream is the whole answer, and nobody's pace or leaving holds the engine."""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
import soundfile

from app.audio.encode import wav_head
from app.engine.requests import AudioChunk
from tests.support.engine import Client, busy, until

# for `Reader`, whose other arguments are no texts
GOOD: dict[str, Any] = {"seconds": "0.6", "seed": "7", "temperature": "0.9"}
LONG: dict[str, Any] = {"seconds": "900", "timeout_seconds": "100", "stream": "true"}
RAW = ("wav", "pcm", "opus", "mp3")


def events_of(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events, each of which is whole."""
    *blocks, rest = content.decode().split("\n\n")
    assert rest == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


class Reader(Client):
    """Reads an answer at its own pace: its status, its content, and whether it ended."""

    def __init__(
        self, service: Any, clip: bytes, takes: int | None = None, part: float = 1.0, path: str = "/continue",
        **fields: str,
    ) -> None:  # fmt: skip
        self.status, self.content, self.chunks, self.ended = 0, b"", 0, False
        self.headers: dict[bytes, bytes] = {}
        self._takes = takes  # so many chunks, and then none until it is told to go on
        super().__init__(service, path, clip, part, **fields)

    async def take(self, message: Any) -> None:
        assert not self.ended
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
            return
        if self._takes is not None and self.chunks >= self._takes:
            await self._on.wait()
        self.content += message["body"]
        self.chunks += 1
        self.ended = not message.get("more_body", False)


def free(service: Any, clip: bytes) -> None:
    """No permit is held, nothing runs, and the next request is served."""
    assert service.app.state.engine.in_use == 0
    until(lambda: service.value("requests_running") == 0)
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200


# the stream is the whole


@pytest.mark.parametrize("include_prompt", ["false", "true"])
@pytest.mark.parametrize("form", RAW)
def test_raw_stream_is_the_whole(service: Any, clip: bytes, form: str, include_prompt: str) -> None:
    fields = GOOD | {"response_format": form, "include_prompt": include_prompt}
    whole = service.post("/continue", clip, data=fields)
    stream = service.post("/continue", clip, data=fields | {"stream": "true"})
    assert stream.status_code == 200, stream.text
    assert stream.headers["content-type"] == whole.headers["content-type"]
    content, expected = stream.content, whole.content
    if form == "wav":
        assert content[:44] == wav_head(None)
        content, expected = content[44:], expected[44:]
    assert content == expected
    samples = 45 * 320 + (100 * 320 if include_prompt == "true" else 0)
    if form in ("wav", "pcm"):
        assert len(content) == 2 * samples


@pytest.mark.parametrize("include_prompt", ["false", "true"])
@pytest.mark.parametrize("n", ["1", "3"])
def test_events_are_the_whole(service: Any, clip: bytes, n: str, include_prompt: str) -> None:
    fields = GOOD | {"n": n, "include_prompt": include_prompt}
    whole = service.post("/continue", clip, data=fields).json()
    stream = service.post("/continue", clip, data=fields | {"stream": "true"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = events_of(stream.content)
    assert [name for name, _ in events[:-1]] == ["audio.delta"] * (len(events) - 1)
    for choice in whole["choices"]:
        deltas = [data for _, data in events[:-1] if data["index"] == choice["index"]]
        assert all(set(data) == {"index", "audio", "tokens", "logprobs"} for data in deltas)
        samples, _ = soundfile.read(io.BytesIO(base64.b64decode(choice.pop("audio")["data"])), dtype="int16")
        assert b"".join(base64.b64decode(data["audio"]) for data in deltas) == samples.astype("<i2").tobytes()
        for name in ("tokens", "logprobs"):
            assert [value for data in deltas for value in data[name]] == choice[name]
        made = [data for data in deltas if data["tokens"]]
        assert all(len(base64.b64decode(data["audio"])) == 640 * len(data["tokens"]) for data in made)
        assert len(made) > 1, "it came in pieces"
    name, done = events[-1]
    assert name == "audio.done"
    assert done.pop("timings").keys() == whole.pop("timings").keys()
    for own in ("id", "created"):
        assert type(done.pop(own)) is type(whole.pop(own))
    assert done == whole


def test_the_prompt_comes_at_once(service: Any, clip: bytes) -> None:
    """All of it, before the first made frame; up to the joint it is the file's own."""
    stream = service.post("/continue", clip, data=GOOD | {"stream": "true", "include_prompt": "true"})
    deltas = [data for name, data in events_of(stream.content) if name == "audio.delta"]
    count = next(index for index, data in enumerate(deltas) if data["tokens"])
    assert all(data["tokens"] for data in deltas[count:])
    prompt = np.frombuffer(b"".join(base64.b64decode(data["audio"]) for data in deltas[:count]), "<i2")
    own, _ = soundfile.read(io.BytesIO(clip), dtype="int16")
    assert len(prompt) == 100 * 320
    assert np.abs(prompt[: 100 * 320 - 240].astype(int) - own[: 100 * 320 - 240]).max() <= 1


def test_headers(service: Any, clip: bytes) -> None:
    """What is known before the first sample, and nothing that would have to be guessed."""
    whole = service.post("/continue", clip, data=GOOD | {"response_format": "pcm"}).headers
    for form in ("pcm", "json"):
        headers = service.post("/continue", clip, data=GOOD | {"response_format": form, "stream": "true"}).headers
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        assert "content-length" not in headers
        for name in ("seed", "prompt-nll", "prompt-tokens", "sample-rate"):
            assert headers[f"x-whispergpt-{name}"] == whole[f"x-whispergpt-{name}"]
        assert headers["x-whispergpt-id"].startswith("cont-")
        for name in ("nll", "tokens", "finish-reason"):
            assert f"x-whispergpt-{name}" not in headers
            assert f"x-whispergpt-{name}" in whole


def test_its_end_is_kept_though_nobody_reads_on(serve: Any, clip: bytes) -> None:
    """Else it would wait with the stream, and count in no bound: what is kept is the store's from the first moment."""
    service = serve()
    reader = Reader(service, clip, takes=1, response_format="pcm", stream="true", **GOOD)
    until(lambda: service.value("prompts_kept", kind="continuation") == 1)
    assert reader.chunks <= 1 and not reader.ended
    made = reader.headers[b"x-whispergpt-id"].decode()
    form = {name: (None, value) for name, value in {"continue_from": made, **GOOD}.items()}
    assert service.wait(service.client.post("/continue", files=form)).status_code == 200
    reader.go_on()
    reader.done.result(60)
    assert reader.ended


def test_a_stream_leaves_while_it_is_made(serve: Any, clip: bytes) -> None:
    """The first audio has been handed out when most frames are not made yet."""
    service = serve(max_seconds=1000)
    reader = Reader(service, clip, response_format="pcm", **LONG)
    until(lambda: reader.chunks > 2)
    assert service.value("generated_tokens_total") < 900 * 75
    assert service.value("first_audio_sent_seconds_count") == 1
    reader.leave()
    assert not reader.ended


# errors


def test_before_the_first_byte_errors_have_their_status(serve: Any, clip: bytes, speech: Any, to_file: Any) -> None:
    service = serve(queue=0, max_seconds=1000, slots=1)
    stream = {"stream": "true"}
    bad: list[tuple[bytes, dict[str, str], int, str]] = [
        (clip, {"response_format": "flac"}, 422, "invalid_parameter"),
        (clip, {"response_format": "wav", "n": "2"}, 422, "invalid_parameter"),
        (to_file(speech[:1_000]), {}, 422, "audio_too_short"),
        (b"no audio at all, only words", {}, 415, "unsupported_format"),
        (clip, {"timeout_seconds": "0.000001"}, 504, "timeout"),
    ]
    for file, fields, status, code in bad:
        answer = service.post("/continue", file, data=stream | fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        free(service, clip)
    reader = Reader(service, clip, **LONG)
    until(lambda: service.app.state.engine.in_use == 1)
    assert service.post("/continue", clip, data=stream).status_code == 429
    reader.leave()
    free(service, clip)


class Fails:
    """An engine's stream that ends in an error after some real events."""

    def __init__(self, service: Any, after: int, error: Exception) -> None:
        self.engine, self.after, self.error = service.app.state.engine, after, error
        self.stream, self.engine.stream = self.engine.stream, self

    async def __call__(self, job: Any) -> AsyncGenerator[Any, None]:
        pieces = 0
        events = self.stream(job)
        try:
            async for event in events:
                pieces += isinstance(event, AudioChunk)
                if pieces > self.after:
                    raise self.error
                yield event
        finally:
            await events.aclose()


@pytest.mark.parametrize("form", [*RAW, "json"])
def test_an_error_in_the_middle(serve: Any, clip: bytes, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """Told by an event, or by the missing end of the response; what was made before it has been sent."""
    service = serve()
    whole = service.post("/continue", clip, data=GOOD | {"response_format": "pcm"}).content
    broken = Fails(service, 2, ZeroDivisionError("secret"))
    reader = Reader(service, clip, stream="true", response_format=form, **GOOD)
    reader.done.result(10)
    assert reader.status == 200
    assert b"secret" not in reader.content
    if form == "json":
        assert reader.ended
        *deltas, (name, data) = events_of(reader.content)
        assert name == "audio.error"
        assert set(data) == {"error"}
        assert data["error"]["code"] == "internal_error"
        assert data["error"]["request_id"] == reader.headers[b"x-request-id"].decode()
        sent = b"".join(base64.b64decode(data["audio"]) for _, data in deltas)
        assert sent and whole.startswith(sent)
    else:
        assert not reader.ended
        if form in ("pcm", "wav"):
            sent = reader.content[44 if form == "wav" else 0 :]
            assert sent and whole.startswith(sent)
    assert service.value("streams_broken_total", reason="internal_error") == 1
    assert service.value("requests_total", route="/continue", outcome="server_error") == 1
    assert "ZeroDivisionError" in caplog.text, "a bug is logged"
    service.app.state.engine.stream = broken.stream
    free(service, clip)


@pytest.mark.parametrize("form", ["pcm", "json"])
def test_time_up_in_the_middle(serve: Any, clip: bytes, form: str) -> None:
    """What is ready has been sent, and the stream has a good end."""
    service = serve(max_seconds=1000)
    fields = LONG | {"timeout_seconds": "0.8", "response_format": form}
    reader = Reader(service, clip, **fields)
    reader.done.result(10)
    assert (reader.status, reader.ended) == (200, True)
    if form == "json":
        done = events_of(reader.content)[-1][1]["choices"][0]
        assert done["finish_reason"] == "timeout"
        assert 0 < len(done["tokens"]) < 900 * 75
    else:
        assert len(reader.content) > 0
        assert len(reader.content) % 640 == 0
    free(service, clip)


# clients that are slow, and clients that leave


@pytest.mark.parametrize("form", ["pcm", "json", "opus"])
def test_a_slow_reader_holds_no_place(serve: Any, clip: bytes, form: str) -> None:
    """The engine makes all of it while the reader takes nothing; what waits is then sent whole."""
    service = serve(queue=0)
    fields: dict[str, Any] = {"seconds": "3", "seed": "7", "response_format": form}
    reader = Reader(service, clip, takes=1, stream="true", **fields)
    until(lambda: reader.chunks == 1 and service.app.state.engine.in_use == 0)
    assert not reader.done.done()
    free(service, clip)
    reader.go_on()
    reader.done.result(10)
    assert reader.ended
    if form == "json":
        assert events_of(reader.content)[-1][0] == "audio.done"
    else:
        assert reader.content == service.post("/continue", clip, data=fields).content


@pytest.mark.parametrize("path", ["/continue", "/score"])
def test_a_slow_reader_of_a_whole_answer_holds_no_place(serve: Any, clip: bytes, path: str) -> None:
    service = serve(queue=0)
    reader = Reader(service, clip, takes=0, path=path)
    until(lambda: reader.status == 200 and service.app.state.engine.in_use == 0)
    assert not reader.done.done()
    free(service, clip)
    reader.go_on()
    reader.done.result(10)
    assert reader.ended
    assert len(reader.content) == int(reader.headers[b"content-length"])
    assert not service.app.state.unread.locked()


def test_a_whole_answer_is_sent_as_it_is_taken(serve: Any, clip: bytes) -> None:
    """In parts, so that a client that takes a few and stops does not leave the rest with the server for ever."""
    service = serve(send_timeout_seconds=0.1)
    fields: dict[str, Any] = {"seconds": "3", "n": "4", "seed": "7"}
    slow = Reader(service, clip, takes=2, **fields)
    slow.done.result(10)
    assert slow.chunks == 2 and not slow.ended
    assert service.value("client_disconnects_total", stage="stalled") == 1
    assert service.value("requests_total", route="/continue", outcome="disconnected") == 1
    good = Reader(service, clip, **fields)
    good.done.result(10)
    assert good.ended and good.chunks > 2
    assert json.loads(good.content)["choices"] == service.post("/continue", clip, data=fields).json()["choices"]
    free(service, clip)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_slow_readers_without_a_place_are_counted(serve: Any, clip: bytes, stream: str) -> None:
    """Beyond the permitted number, an answer that waits for its reader keeps its permit: memory stays bounded."""
    service = serve()
    service.app.state.unread = asyncio.Semaphore(1)
    engine = service.app.state.engine
    fields: dict[str, Any] = {"seconds": "0.6", "stream": stream}
    first = Reader(service, clip, takes=0, **fields)
    until(lambda: first.status == 200 and engine.in_use == 0)
    second = Reader(service, clip, takes=0, **fields)
    until(lambda: second.status == 200 and service.value("generated_tokens_total") == 90)
    assert engine.in_use == 1
    first.leave()
    until(lambda: engine.in_use == 0)
    second.go_on()
    second.done.result(10)
    assert second.ended
    assert not service.app.state.unread.locked()
    free(service, clip)


def test_a_reader_that_takes_nothing_is_left(serve: Any, clip: bytes) -> None:
    service = serve(send_timeout_seconds=0.1)
    reader = Reader(service, clip, takes=1, stream="true", seconds="1")
    reader.done.result(10)
    assert not reader.ended
    assert service.value("client_disconnects_total", stage="stalled") == 1
    assert service.value("requests_total", route="/continue", outcome="disconnected") == 1
    free(service, clip)


def left_at(service: Any, stage: str) -> None:
    assert service.value("client_disconnects_total", stage=stage) == 1
    assert service.value("requests_total", route="/continue", outcome="disconnected") == 1
    assert service.app.state.engine.in_use == 0


def test_leaving_during_the_upload(serve: Any, clip: bytes) -> None:
    service = serve()
    reader = Reader(service, clip, part=0.5, stream="true")
    until(lambda: service.app.state.engine.in_use == 1)
    reader.leave()
    left_at(service, "upload")
    free(service, clip)


def test_leaving_while_the_file_is_decoded(serve: Any, clip: bytes, to_file: Any) -> None:
    service = serve(max_prompt_seconds=80_000)
    hour = to_file(np.zeros(8_000 * 3_600, np.int16), 8_000, "FLAC")
    reader = Reader(service, hour, stream="true")
    until(lambda: service.app.state.decoders.borrowed_tokens > 0)
    reader.leave()
    left_at(service, "decode")
    free(service, clip)


def test_leaving_the_queue(serve: Any, clip: bytes) -> None:
    service = serve(threads=1)
    with busy(service):
        reader = Reader(service, clip, stream="true")
        until(
            lambda: service.value("audio_decode_seconds_count") == 1 and not service.app.state.decoders.borrowed_tokens
        )
        reader.leave()
        assert reader.status == 499
        left_at(service, "queue")
    free(service, clip)


def test_leaving_while_all_slots_are_taken(serve: Any, clip: bytes) -> None:
    """The prompt has been read, and is forgotten."""
    service = serve(slots=1, max_seconds=1000)
    first = Reader(service, clip, **LONG)
    until(lambda: first.chunks > 1)
    reader = Reader(service, clip, stream="true")
    until(lambda: service.value("prefill_seconds_count") == 2)
    reader.leave()
    assert reader.status == 499
    assert service.value("client_disconnects_total", stage="slot") == 1
    assert service.app.state.engine.in_use == 1
    first.leave()
    free(service, clip)


def test_time_up_while_all_slots_are_taken(serve: Any, clip: bytes) -> None:
    """Nothing has been sent, so the answer is a 504; with the prompt in front it is an event."""
    service = serve(slots=1, max_seconds=1000)
    first = Reader(service, clip, **LONG)
    until(lambda: first.chunks > 1)
    fields = {"stream": "true", "timeout_seconds": "0.3"}
    answer = service.post("/continue", clip, data=fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    answer = service.post("/continue", clip, data=fields | {"include_prompt": "true"})
    assert answer.status_code == 200
    *deltas, (name, data) = events_of(answer.content)
    assert sum(len(base64.b64decode(delta["audio"])) for _, delta in deltas) == 100 * 640
    assert (name, data["error"]["code"]) == ("audio.error", "timeout")
    assert service.value("first_audio_sent_seconds_count") == 1, "the prompt is nothing that was made"
    first.leave()
    free(service, clip)


def test_leaving_while_the_prompt_is_read(serve: Any, clip: bytes, speech: Any, to_file: Any) -> None:
    service = serve(max_prompt_seconds=4_000)
    long = to_file(np.tile(speech, 750), form="FLAC")
    reader = Reader(service, long, stream="true")
    until(lambda: service.value("requests_running") == 1)
    reader.leave()
    left_at(service, "prefill")
    free(service, clip)


@pytest.mark.parametrize("form", [*RAW, "json"])
def test_leaving_while_it_is_made(serve: Any, clip: bytes, form: str) -> None:
    service = serve(max_seconds=1000)
    reader = Reader(service, clip, response_format=form, **LONG)
    until(lambda: reader.chunks > 3)
    reader.leave()
    left_at(service, "step")
    until(lambda: service.value("slots_used") == 0)
    made = service.value("step_seconds_count")
    time.sleep(0.1)
    assert service.value("step_seconds_count") == made
    free(service, clip)


def test_leaving_before_the_last_chunk(serve: Any, clip: bytes) -> None:
    """All is made, and not all is taken."""
    service = serve()
    reader = Reader(service, clip, takes=1, stream="true", seconds="1")
    until(lambda: reader.chunks == 1 and service.app.state.engine.in_use == 0)
    reader.leave()
    left_at(service, "send")
    assert service.app.state.unread._value == 32
    free(service, clip)


def test_leaving_at_any_moment(serve: Any, clip: bytes) -> None:
    """Twenty moments, none of which may hold a permit or hurt the next request."""
    service = serve(max_seconds=1000)
    for step in range(20):
        reader = Reader(service, clip, response_format=(*RAW, "json")[step % 5], **LONG)
        time.sleep(0.003 * step)
        reader.leave()
        assert service.app.state.engine.in_use == 0
    free(service, clip)


def test_a_finished_stream_is_counted_as_such(serve: Any, clip: bytes) -> None:
    service = serve()
    body = service.post("/continue", clip, data=GOOD | {"stream": "true"})
    timings = events_of(body.content)[-1][1]["timings"]
    assert 0 < timings["prefill_seconds"] < timings["first_audio_seconds"] < timings["total_seconds"]
    assert service.value("requests_total", route="/continue", outcome="ok") == 1
    assert service.value("first_audio_sent_seconds_count") == 1
    assert service.value("first_audio_sent_seconds_sum") == pytest.approx(timings["first_audio_seconds"])
    assert service.value("client_disconnects_total", stage="send") == 0
    assert service.value("generated_tokens_total") == 45
