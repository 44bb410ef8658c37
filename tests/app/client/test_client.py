"""The client against a real server, and what it does when one is busy, breaks off or is not there."""

import asyncio
import base64
import inspect
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import websockets.sync.server as sockets
from websockets.frames import CloseCode
from websockets.sync.server import ServerConnection

from app.audio.encode import to_pcm
from app.client import ApiError, AsyncClient, Client
from app.client import calls as calls_module
from app.client.calls import AudioPart, pause_seconds
from app.client.live import pcm as pcm_of
from app.continuations.schemas import ContinuationSummary
from app.errors import UserError
from tests.support.process import Server

KEY = "sesame"
SHORT: dict[str, Any] = {"seconds": 0.4, "seed": 7}


@pytest.fixture(scope="module")
def url(saved_bundle: Path) -> Iterator[str]:
    server = Server(saved_bundle, "--api-keys", KEY)
    yield f"http://127.0.0.1:{server.port}"
    server.close()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, KEY) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited for between tries, instead of waiting."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("app.client.sync.time.sleep", waited.append)
    monkeypatch.setattr("app.client.aio.asyncio.sleep", sleep)
    return waited


def answering(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A server that answers so, one after the other."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        one = answers[len(seen) - 1]
        if isinstance(one, Exception):
            raise one
        return one

    return httpx.MockTransport(answer), seen


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    told = {"message": "no", "type": "t", "code": code, "param": "p", "request_id": "r"}
    return httpx.Response(status, json={"error": told}, headers={k.replace("_", "-"): v for k, v in headers.items()})


def models() -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": []})


def test_whole_streamed_and_kept_are_the_same(client: Client, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(clip)
    whole = client.generate(tmp_path / "a.flac", **SHORT)
    assert whole.choices[0].finish_reason == "length" and whole.seed == 7
    *parts, summary = client.stream(io.BytesIO(clip), **SHORT)
    assert isinstance(summary, ContinuationSummary)
    assert [token for part in parts if isinstance(part, AudioPart) for token in part.tokens] == whole.choices[0].tokens
    sound = client.audio(clip, response_format="pcm", **SHORT)
    streamed = b"".join(part.pcm for part in parts if isinstance(part, AudioPart))
    assert streamed == sound.content == b"".join(client.stream_audio(clip, **SHORT))
    assert base64.b64decode(whole.choices[0].audio.data)[-len(streamed) :] == streamed
    prompt = client.keep_prompt(clip)
    assert client.generate(prompt=prompt.id, **SHORT).choices == whole.choices
    more = client.generate(continue_from=whole.id, **SHORT)
    assert more.prompt.tokens == prompt.tokens + 30
    client.forget(prompt.id)
    with pytest.raises(ApiError) as gone:
        client.generate(prompt=prompt.id, **SHORT)
    assert (gone.value.status, gone.value.code) == (404, "prompt_not_found") and gone.value.request_id


def test_scores_and_models(client: Client, clip: bytes) -> None:
    scored = client.score([clip, b"no audio"], detail="tokens")
    assert len(scored.results) == 2
    assert client.report([clip], "csv").startswith(b"filename,")
    assert client.models().data[0].preset == "tiny"


def test_progress_of_an_upload(client: Client, speech: Any, to_file: Callable[..., bytes]) -> None:
    large = to_file(np.tile(speech, 20))
    told: list[tuple[int, int]] = []
    client.generate(large, progress=lambda sent, total: told.append((sent, total)), **SHORT)
    assert told[-1] == (len(large), len(large)) and len(told) > 3
    assert [sent for sent, _ in told] == sorted(sent for sent, _ in told)


def test_leaving_a_stream_ends_it(client: Client, clip: bytes, url: str) -> None:
    parts = client.stream(clip, seconds=30)
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    left = httpx.get(url + "/metrics").text
    assert "whispergpt_client_disconnects_total" in left


def test_a_session(client: Client, speech: Any) -> None:
    samples = to_pcm(speech).astype("<i2").tobytes()
    with client.session() as session:
        created = session.event()
        assert created is not None and created["type"] == "session.created"
        for start in range(0, len(samples), 4_800):
            session.append(samples[start : start + 4_800])
        session.commit()
        session.respond(**SHORT)
        audio = b""
        for event in session:
            assert event["type"] != "error", event
            if event["type"] == "response.output_audio.delta":
                audio += pcm_of(event)
            elif event["type"] == "response.done":
                break
        assert len(audio) == 2 * 320 * 30
        session.send("nonsense")
        told = session.event()
        assert told is not None and told["type"] == "error"


def test_a_session_wants_the_key(url: str) -> None:
    with pytest.raises(ApiError) as refused, Client(url, "wrong") as client, client.session():
        pass
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_a_session_on_an_event_loop(url: str, speech: Any) -> None:
    """Its next event, or none in time."""
    samples = to_pcm(speech).astype("<i2").tobytes()

    async def use() -> list[str]:
        kinds: list[str] = []
        async with AsyncClient(url, KEY) as client, client.session() as session:
            assert (await session.event(60) or {})["type"] == "session.created"
            assert await session.event(0.01) is None
            await session.append(samples)
            await session.commit()
            await session.respond(**SHORT)
            while not kinds or kinds[-1] != "response.done":
                kinds.append((await session.event() or {})["type"])
        with pytest.raises(ApiError, match="the session is closed"):
            await session.event()
        return kinds

    kinds = asyncio.run(use())
    assert "input_audio_buffer.committed" in kinds and "response.output_audio.delta" in kinds


def test_a_session_that_breaks_off() -> None:
    """Whoever iterates hears of it as of all else that fails; a close that was meant ends the events."""

    def serve(connection: ServerConnection) -> None:
        connection.send('{"type": "session.created"}')
        connection.close(CloseCode.NORMAL_CLOSURE if last else CloseCode.INTERNAL_ERROR)

    async def use() -> None:
        async with AsyncClient(url) as client, client.session() as session:
            kinds.extend([event["type"] async for event in session])

    last, kinds = False, list[str]()
    with sockets.serve(serve, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
            with Client(url) as client:
                with client.session() as session, pytest.raises(ApiError, match="the session is closed"):
                    kinds.extend(event["type"] for event in session)
                with pytest.raises(ApiError, match="the session is closed"):
                    asyncio.run(use())
                last = True
                with client.session() as session:
                    kinds.extend(event["type"] for event in session)
            asyncio.run(use())
        finally:
            server.shutdown()
            thread.join()
    assert kinds == ["session.created"] * 3  # an async comprehension that raises has given nothing


def test_all_of_it_awaited(url: str, clip: bytes, speech: Any) -> None:
    async def use() -> None:
        async with AsyncClient(url, KEY) as client:
            whole = await client.generate(clip, **SHORT)
            parts = [part async for part in client.stream(clip, **SHORT)]
            tokens = [token for part in parts if isinstance(part, AudioPart) for token in part.tokens]
            assert tokens == whole.choices[0].tokens
            prompt = await client.keep_prompt(clip)
            assert (await client.generate(prompt=prompt.id, **SHORT)).choices == whole.choices
            assert (await client.audio(prompt=prompt.id, **SHORT)).content[:4] == b"RIFF"
            heads: list[str] = []
            sound = [part async for part in client.stream_audio(
                prompt=prompt.id, begun=lambda headers: heads.append(headers["content-type"]), **SHORT
            )]  # fmt: skip
            assert b"".join(sound) == b"".join(part.pcm for part in parts if isinstance(part, AudioPart))
            assert len(heads) == 1 and heads[0].startswith("audio/"), "told once, before the first bytes"
            await client.forget(prompt.id)
            table = (await client.report([clip], "zerospeech")).decode()
            assert float(table.split(" ")[1]) == (await client.score([clip])).results[0].log_likelihood  # type: ignore[union-attr]
            assert len((await client.score([clip, clip])).results) == 2
            assert (await client.models()).data
            async with client.session() as session:
                await session.append(to_pcm(speech).astype("<i2").tobytes())
                await session.commit()
                await session.respond(seconds=30)
                kinds = []
                async for event in session:
                    kinds.append(event["type"])
                    if kinds[-1] == "response.output_audio.delta" and kinds[-2] != kinds[-1]:
                        await session.interrupt()
                    if kinds[-1] == "response.done":
                        assert event["response"]["status"] == "cancelled"
                        break

    asyncio.run(use())


def test_both_clients_have_the_same_methods() -> None:
    """With the same arguments, since a program moves from one to the other."""

    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: one for name, one in vars(kind).items() if not name.startswith("_") and callable(one)}
        return {name: list(inspect.signature(one).parameters) for name, one in public.items()}

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_comes_again_when_the_server_says(kind: str, pauses: list[float]) -> None:
    transport, seen = answering(
        refusal(429, "overloaded", retry_after="7"), refusal(503, "draining", retry_after="3"), models()
    )
    if kind == "sync":
        assert Client(transport=transport).models().data == []
    else:
        assert asyncio.run(AsyncClient(transport=transport).models()).data == []
    assert pauses == [7.0, 3.0] and len(seen) == 3


def test_it_does_not_come_for_ever(pauses: list[float]) -> None:
    transport, seen = answering(*(refusal(429, "overloaded", retry_after="1") for _ in range(3)))
    with pytest.raises(ApiError) as error:
        Client(transport=transport).models()
    assert (error.value.status, error.value.code, error.value.param) == (429, "overloaded", "p")
    assert error.value.retry_after_seconds == 1.0 and len(seen) == 3
    transport, seen = answering(refusal(429, "rate_limited", retry_after="600"))
    with pytest.raises(ApiError):
        Client(transport=transport).models()
    assert len(seen) == 1, "longer than anybody waits unasked"


MADE = [
    refusal(422, "invalid_parameter"), refusal(500, "internal_error"), httpx.Response(502, text="<html>"),
    httpx.ReadError("broken"),
]  # fmt: skip


@pytest.mark.parametrize("answer", MADE, ids=repr)
def test_what_may_have_been_done_is_not_done_again(answer: Any, pauses: list[float]) -> None:
    transport, seen = answering(answer)
    with pytest.raises(ApiError):
        Client(transport=transport).models()
    assert len(seen) == 1 and not pauses


def test_a_server_that_is_not_there_yet(pauses: list[float]) -> None:
    transport, seen = answering(httpx.ConnectError("refused"), models())
    assert Client(transport=transport).models().data == []
    assert len(seen) == 2 and 0 < pauses[0] < 1
    assert pause_seconds(0, httpx.ConnectError("x"), retries=0) is None


def test_uploads_are_sent_whole_at_each_try(pauses: list[float], clip: bytes) -> None:
    transport, seen = answering(refusal(429, "overloaded", retry_after="1"), models())
    with pytest.raises(Exception, match="validation"):  # no continuation, but the request is what counts
        Client(transport=transport).generate(clip, progress=lambda sent, total: None, seconds=1.0, store=False)
    first, second = (request.read() for request in seen)
    assert clip in first and clip in second
    assert b'name="store"\r\n\r\nfalse' in second


def test_sound_and_reports_as_they_come_awaited() -> None:
    """What is sent, and the bytes of the answer as they are."""
    sound, table = (
        httpx.Response(200, stream=httpx.ByteStream(b"abcd"), headers={"x-seed": "7"}),
        httpx.Response(200, content=b"a -1.5\n"),
    )
    transport, seen = answering(sound, table)
    heads: list[str] = []

    async def use() -> None:
        client = AsyncClient(transport=transport)
        parts = [part async for part in client.stream_audio(b"x", begun=lambda told: heads.append(told["x-seed"]))]
        assert b"".join(parts) == b"abcd" and heads == ["7"]
        assert await client.report([b"x"], "zerospeech") == b"a -1.5\n"

    asyncio.run(use())
    first, second = (request.read() for request in seen)
    assert b'name="stream"\r\n\r\ntrue' in first and b'name="response_format"\r\n\r\npcm' in first
    assert b'name="response_format"\r\n\r\nzerospeech' in second


def test_errors_within_a_stream(clip: bytes) -> None:
    told = {"message": "late", "type": "t", "code": "timeout", "param": None, "request_id": "r"}
    lines = f"event: audio.error\ndata: {json.dumps({'error': told})}\n\n"
    transport, _ = answering(httpx.Response(200, text=lines))
    with pytest.raises(ApiError) as error:
        list(Client(transport=transport).stream(clip))
    assert error.value.code == "timeout"


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Client().generate(tmp_path / "nothing.wav")
    with pytest.raises(ApiError, match="no answer"):
        Client("127.0.0.1:9", retries=0).models()
    with pytest.raises(ApiError, match="no session"), Client("127.0.0.1:9").session():
        pass
    assert calls_module.server_url("localhost:1/") == "http://localhost:1"
