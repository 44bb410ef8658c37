"""A live session: what is heard and made in it is what /continue hears and makes, and it is bounded as all is."""

import base64
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soxr

from app.audio.incoming import IncomingPcm
from app.errors import InvalidParameter, NotReady
from app.sessions.listening import Listening
from app.sessions.schemas import client_event
from tests.support.engine import until
from tests.support.service import Service
from tests.support.websocket import Left, Refused, Socket

KEYS = {"api_keys": {"alice": "first/=+", "bob": "second"}}
SHORT = {"seconds": 0.4, "seed": 7}
LONG = {"seconds": 900}  # a minute of steps: never over by itself while a test looks


@pytest.fixture(scope="session")
def pcm(speech: Any) -> bytes:
    """The prompt as 16-bit samples."""
    return bytes(np.round(speech * 32767).astype("<i2").tobytes())


@pytest.fixture
def as_file(pcm: bytes, to_file: Callable[..., bytes]) -> bytes:
    return to_file(np.frombuffer(pcm, "<i2"))


def append(socket: Socket, pcm: bytes, size: int = 4_000) -> None:
    for start in range(0, len(pcm), size):
        socket.send("input_audio_buffer.append", audio=base64.b64encode(pcm[start : start + size]).decode())


def commit(socket: Socket) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    socket.send("input_audio_buffer.commit")
    scored, committed = socket.until("input_audio_buffer.committed")
    assert {event["type"] for event in scored} <= {"input_audio.scored"}
    return scored, committed["prompt"]


def respond(socket: Socket, **fields: Any) -> tuple[bytes, list[int], dict[str, Any]]:
    """The audio, the tokens and the summary of a response."""
    socket.send("response.create", **fields)
    created = socket.take("response.created")
    deltas, done = socket.until("response.done")
    assert {event["type"] for event in deltas} == {"response.output_audio.delta"}
    assert {event["response_id"] for event in deltas} == {created["response_id"]} == {done["response"]["id"]}
    audio = b"".join(base64.b64decode(event["delta"]) for event in deltas)
    return audio, [token for event in deltas for token in event["tokens"]], done["response"]


def test_the_same_as_with_a_file(service: Service, pcm: bytes, as_file: bytes) -> None:
    socket = Socket(service)
    append(socket, pcm)
    _, prompt = commit(socket)
    audio, tokens, done = respond(socket, response=SHORT)
    file = service.post("/continue", as_file, data={"seconds": "0.4", "seed": "7"}).json()
    assert tokens == file["choices"][0]["tokens"] and len(audio) == 2 * 320 * 30
    assert (prompt["tokens"], prompt["seconds"]) == (100, pytest.approx(100 / 75))
    assert prompt["nll"] == pytest.approx(file["prompt"]["nll"], abs=1e-4)
    assert (done["status"], done["seed"]) == ("completed", 7)
    assert done["choices"][0]["nll"] == pytest.approx(file["choices"][0]["nll"], abs=1e-4)
    assert done["first_audio_seconds"] > 0
    socket.leave()


def test_the_pieces_are_no_part_of_the_result(service: Service, pcm: bytes) -> None:
    """To the bit: the server reads chunks of its own, counted from the start."""
    made = []
    for size in (2, 1_000, 9_602, len(pcm)):
        socket = Socket(service)
        if size == 2:
            append(socket, pcm[:600], size)
            socket.send_bytes(pcm[600:])
        else:
            append(socket, pcm, size)
        scored, prompt = commit(socket)
        audio, _, _ = respond(socket, response=SHORT)
        told = [(event["first"], event["tokens"], event["logprobs"]) for event in scored]
        made.append((told, prompt["nll"], audio))
        socket.leave()
    assert made[0] == made[1] == made[2] == made[3]


def test_it_tells_likelihoods_while_audio_comes(service: Service, pcm: bytes, as_file: bytes) -> None:
    socket = Socket(service)
    append(socket, pcm[: 2 * 320 * 22])
    first = socket.take("input_audio.scored")
    assert first["first"] == 0 and len(first["tokens"]) == 15, "as soon as they are read, long before the commit"
    append(socket, pcm[2 * 320 * 22 :])
    scored, prompt = commit(socket)
    logprobs = np.concatenate([event["logprobs"] for event in (first, *scored)])
    (result,) = service.post("/score", as_file, data={"detail": "tokens"}).json()["results"]
    assert logprobs == pytest.approx(result["logprobs"][: len(logprobs)], abs=1e-3)
    assert [event["first"] for event in scored] == list(range(15, len(logprobs), 15))
    assert scored[-1]["nll"] == pytest.approx(-logprobs.mean())
    assert prompt["tokens"] == 100 and len(logprobs) == 90
    socket.leave()


def test_it_goes_on_after_its_own_response(service: Service, pcm: bytes) -> None:
    socket = Socket(service)
    append(socket, pcm)
    commit(socket)
    whole, _, _ = respond(socket, response=SHORT | {"seconds": 0.8})
    first, _, done = respond(socket, response=SHORT)
    second, _, _ = respond(socket, response=SHORT, after="response")
    assert first + second == whole, "the last prompt can be continued again, and so can the response"
    form = {"continue_from": (None, done["id"]), "seconds": (None, "0.4"), "seed": (None, "7")}
    tokens = service.wait(service.client.post("/continue", files=form)).json()["choices"][0]["tokens"]
    again, own, _ = respond(socket, response=SHORT, after="response")
    assert len(again) == len(second) and len(own) == len(tokens)
    socket.leave()


def test_a_commit_leaves_a_prompt_for_http(service: Service, pcm: bytes) -> None:
    socket = Socket(service)
    append(socket, pcm)
    _, prompt = commit(socket)
    _, tokens, _ = respond(socket, response=SHORT)
    socket.leave()
    form = {"prompt": (None, prompt["id"]), "seconds": (None, "0.4"), "seed": (None, "7")}
    assert service.wait(service.client.post("/continue", files=form)).json()["choices"][0]["tokens"] == tokens


def test_an_interruption_ends_the_response_and_not_the_session(serve: Callable[..., Service], pcm: bytes) -> None:
    service = serve(max_seconds=LONG["seconds"])
    socket = Socket(service)
    append(socket, pcm)
    commit(socket)
    socket.send("response.create", response=LONG)
    socket.take("response.created")
    socket.take("response.output_audio.delta")
    append(socket, pcm)
    socket.send("response.cancel")
    _, done = socket.until("response.done")
    assert done["response"]["status"] == "cancelled"
    until(lambda: service.value("slots_used") == 0)
    socket.send("input_audio_buffer.commit")
    _, committed = socket.until("input_audio_buffer.committed")
    assert committed["prompt"]["tokens"] == 100, "what came meanwhile was heard"
    assert len(respond(socket, response=SHORT)[1]) == 30
    socket.send("response.cancel")
    socket.send("input_audio_buffer.clear")
    socket.take("input_audio_buffer.cleared")
    socket.leave()


def test_leaving_frees_all(serve: Callable[..., Service], pcm: bytes) -> None:
    service = serve(max_seconds=LONG["seconds"])
    socket = Socket(service)
    append(socket, pcm)
    commit(socket)
    socket.send("response.create", response=LONG)
    socket.take("response.created")
    socket.take("response.output_audio.delta")
    before = service.value("requests_total", route="/v1/audio/session", outcome="ok")
    socket.leave()
    until(lambda: service.value("slots_used") == 0)
    assert service.app.state.engine.in_use == service.value("sessions") == 0
    assert service.value("requests_total", route="/v1/audio/session", outcome="ok") == before + 1


def test_other_rates(service: Service, pcm: bytes, to_file: Callable[..., bytes]) -> None:
    high = soxr.resample(np.frombuffer(pcm, "<i2").astype(np.float32) / 32768, 24_000, 44_100)
    high = np.round(high * 32767).astype("<i2")
    socket = Socket(service)
    socket.send("session.update", session={"sample_rate": 44_100, "seconds": 0.4})
    assert socket.take("session.updated")["session"]["sample_rate"] == 44_100
    append(socket, high.tobytes(), 8_820)
    _, prompt = commit(socket)
    _, tokens, _ = respond(socket, response={"seed": 7})
    file = service.post("/continue", to_file(high, 44_100), data={"seconds": "0.4", "seed": "7"}).json()
    assert tokens == file["choices"][0]["tokens"]
    assert prompt["tokens"] == file["prompt"]["tokens"]
    socket.leave()


@pytest.mark.parametrize(("sent", "code", "param"), [
    ("no json", "invalid_parameter", "type"),
    ('{"type": "session.destroy"}', "invalid_parameter", "type"),
    ('{"type": "input_audio_buffer.append", "audio": "%%%", "event_id": "e1"}', "audio_invalid", "audio"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA", "event_id": "e1"}', "audio_invalid", "audio"),
    ('{"type": "input_audio_buffer.append", "event_id": "e1"}', "invalid_parameter", None),
    ('{"type": "input_audio_buffer.commit", "event_id": "e1"}', "audio_too_short", "file"),
    ('{"type": "response.create", "event_id": "e1"}', "invalid_parameter", "after"),
    ('{"type": "session.update", "session": {"sample_rate": 7}, "event_id": "e1"}', "invalid_parameter", "sample_rate"),
    ('{"type": "session.update", "session": {"input_audio_format": "mp3"}, "event_id": "e1"}', "invalid_parameter",
     "input_audio_format"),
    ('{"type": "session.update", "session": {"voice": "x"}, "event_id": "e1"}', "invalid_parameter", "voice"),
    ('{"type": "session.update", "session": {"response": {"seed": 1}}, "event_id": "e1"}', "invalid_parameter",
     "response"),
    ('{"type": "session.update", "session": {"top_p": 2}, "event_id": "e1"}', "invalid_parameter", "top_p"),
    ('{"type": "session.update", "session": {"seconds": "x"}, "event_id": "e1"}', "invalid_parameter", "seconds"),
])  # fmt: skip
def test_what_is_wrong_is_told_and_ends_nothing(
    service: Service, pcm: bytes, sent: str, code: str, param: str | None
) -> None:
    socket = Socket(service)
    socket.send_text(sent)
    told = socket.take("error")
    assert told["error"]["code"] == code, told
    assert param is None or told["error"]["param"] == param
    assert set(told["error"]) == {"message", "type", "code", "param", "request_id"}
    try:
        client_event(sent)
        assert told["event_id"] == "e1"
    except InvalidParameter:
        assert told["event_id"] is None
    append(socket, pcm)
    assert commit(socket)[1]["tokens"] == 100
    socket.leave()


def test_more_than_a_prompt_may_have(serve: Callable[..., Service], pcm: bytes) -> None:
    service = serve(max_prompt_seconds=1.0, max_seconds=2.0)
    socket = Socket(service)
    append(socket, pcm[:40_000])
    append(socket, pcm[:16_000], 16_000)
    _, told = socket.until("error")
    assert told["error"]["code"] == "audio_too_long"
    assert commit(socket)[1]["tokens"] == 62, "what came before is kept"
    socket.send("response.create", response={"seconds": 3})
    assert socket.take("error")["error"]["param"] == "seconds"
    socket.send("response.create", response={"seconds": 2})
    socket.take("response.created")
    socket.send("response.create")
    _, told = socket.until("error")
    assert "under way" in told["error"]["message"]
    socket.leave()


def test_keys(serve: Callable[..., Service], pcm: bytes) -> None:
    """In a header, or, as browsers can, among the protocols; and what a session keeps is its key's."""
    service = serve(**KEYS)
    named = base64.urlsafe_b64encode(b"first/=+").decode().rstrip("=")
    wrong = base64.urlsafe_b64encode(b"third").decode()
    for protocols, headers in (
        ((), {}), ((), {"x-api-key": "third"}), (("whispergpt", f"whispergpt.key.{wrong}"), {}),
        (("whispergpt", "whispergpt.key.%"), {}),
    ):  # fmt: skip
        with pytest.raises(Refused) as refused:
            Socket(service, protocols=protocols, headers=headers)
        assert (refused.value.status, refused.value.body["error"]["code"]) == (401, "invalid_api_key")
    socket = Socket(service, protocols=("whispergpt", f"whispergpt.key.{named}"))
    assert socket.protocol == "whispergpt"
    append(socket, pcm)
    _, prompt = commit(socket)
    socket.leave()
    for key, status in (("first/=+", 200), ("second", 404)):
        got = service.get(f"/v1/audio/prompts/{prompt['id']}", headers={"x-api-key": key})
        assert got.status_code == status
    Socket(service, headers={"authorization": "Bearer second"}).leave()


def test_pages_of_other_servers_are_refused(service: Service) -> None:
    for origin in ("http://elsewhere", "null", "http://test.elsewhere", "http://[", ""):
        with pytest.raises(Refused) as refused:
            Socket(service, headers={"origin": origin})
        assert (refused.value.status, refused.value.body["error"]["code"]) == (403, "forbidden")
    Socket(service, headers={"origin": "http://test"}).leave()


def test_limits(serve: Callable[..., Service], pcm: bytes) -> None:
    service = serve(max_sessions=1, limit_requests_per_minute=4, limit_audio_seconds_per_minute=4)
    socket = Socket(service)
    with pytest.raises(Refused) as refused:
        Socket(service)
    assert (refused.value.status, refused.value.body["error"]["code"]) == (429, "overloaded")
    assert int(refused.value.headers["retry-after"]) > 0
    append(socket, pcm)
    commit(socket)
    socket.send("response.create", response={"seconds": 4})
    assert socket.take("error")["error"]["code"] == "rate_limited"
    assert len(respond(socket, response=SHORT)[1]) == 30
    socket.leave()
    with pytest.raises(Refused) as refused:
        Socket(service)
    assert (refused.value.status, refused.value.body["error"]["code"]) == (429, "rate_limited")


def cleared(socket: Socket) -> dict[str, Any]:
    """The answer to a clear, behind what was told of the audio."""
    socket.send("input_audio_buffer.clear")
    while (event := socket.event())["type"] == "input_audio.scored":
        pass
    return event


def test_what_is_cleared_was_heard(serve: Callable[..., Service], pcm: bytes) -> None:
    """It was read as it came, so it counts. Beyond the limit it stays, and a prompt's length bounds what may follow."""
    service = serve(limit_audio_seconds_per_minute=3)
    socket = Socket(service)
    append(socket, pcm)
    assert cleared(socket)["type"] == "input_audio_buffer.cleared"
    append(socket, pcm)
    assert cleared(socket)["error"]["code"] == "rate_limited"
    socket.leave()


def test_silence_ends_a_session(serve: Callable[..., Service]) -> None:
    service = serve(session_idle_seconds=0.1)
    socket = Socket(service)
    assert socket.event() == {"type": "close", "code": 1001}
    socket.done.result(5)
    assert service.app.state.engine.in_use == 0


def test_a_server_that_stops_says_so(serve: Callable[..., Service]) -> None:
    service = serve()
    socket = Socket(service)
    service.app.state.engine.draining = True
    assert socket.take("error")["error"]["code"] == "draining"
    assert socket.event() == {"type": "close", "code": 1001}
    with pytest.raises(Refused) as refused:
        Socket(service)
    assert refused.value.status == 503


def test_a_server_that_stops_says_so_to_who_speaks_without_a_pause(serve: Callable[..., Service], pcm: bytes) -> None:
    service = serve()
    socket = Socket(service)
    for _ in range(200):
        socket.send("input_audio_buffer.clear")
    service.loop.call_soon_threadsafe(lambda: setattr(service.app.state.engine, "draining", True))
    for _ in range(200):
        socket.send("input_audio_buffer.clear")
    before, told = socket.until("error")
    assert told["error"]["code"] == "draining" and len(before) < 400
    assert socket.event() == {"type": "close", "code": 1001}
    socket.done.result(10)
    assert service.app.state.engine.in_use == 0


def test_a_client_that_leaves_at_once_is_no_fault(service: Service) -> None:
    before = service.value("requests_total", route="/v1/audio/session", outcome="ok")
    with pytest.raises(Left):
        Socket(service, leaves=True)
    until(lambda: service.value("requests_total", route="/v1/audio/session", outcome="ok") == before + 1)
    assert service.app.state.engine.in_use == 0


def listening(service: Service, most_seconds: float = 60.0) -> Listening:
    return Listening(service.app.state.engine, None, IncomingPcm(24_000), most_seconds, 60.0)


def test_pieces_take_the_memory_of_their_samples(service: Service, pcm: bytes) -> None:
    heard = listening(service)

    async def feed() -> None:
        for _ in range(20_000):
            await heard.feed(b"")
        for start in range(0, 40_000, 2):
            await heard.feed(pcm[start : start + 2])

    tracemalloc.start()
    try:
        service.wait(feed())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert heard.samples.tobytes() == (np.frombuffer(pcm[:40_000], "<i2") / np.float32(32768)).tobytes()
    assert held < 4 * 80_000


def test_audio_that_was_not_read_is_read_anew(service: Service, pcm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk fails behind others: a thread may have read it, or have its reader still, so all is read by a new one."""
    engine = service.app.state.engine
    whole, cut = listening(service), listening(service)

    async def read(heard: Listening, fails: int | None = None) -> list[int]:
        tokens: list[int] = []
        while heard.ready:
            if len(tokens) == fails:
                fails = None
                with pytest.raises(NotReady):
                    await heard.read()
                tokens = []
            tokens += (await heard.read()).tokens.tolist()
        await heard.finish()
        tokens += (await heard.read(last=True)).tokens.tolist()
        return tokens

    for one in (whole, cut):
        service.wait(one.feed(pcm))
    expected = service.wait(read(whole))
    submit, count = engine.submit, 0

    async def failing(request: Any) -> Any:
        nonlocal count
        count += 1
        answer = await submit(request)
        if count == 3:
            raise NotReady("a thread is stuck")
        return answer

    monkeypatch.setattr(engine, "submit", failing)
    assert service.wait(read(cut, fails=30)) == expected
    assert (cut.tokens, cut.log_likelihood) == (whole.tokens, whole.log_likelihood)
    assert cut.samples.tobytes() == whole.samples.tobytes()


def test_a_client_that_takes_nothing_is_cut_off(serve: Callable[..., Service], pcm: bytes) -> None:
    service = serve(send_timeout_seconds=0.3, max_seconds=LONG["seconds"])
    socket = Socket(service)
    append(socket, pcm)
    commit(socket)
    socket.send("response.create", response=LONG)
    socket.take("response.created")
    socket.take("response.output_audio.delta")
    service.loop.call_soon_threadsafe(socket.takes.clear)
    until(lambda: service.value("slots_used") == 0)
    socket.done.result(10)  # which takes no close either
    assert service.app.state.engine.in_use == 0


def test_what_is_likely_wrong_with_a_recording_is_told(service: Service, pcm: bytes) -> None:
    """With the commit that ends it, with its response, and wherever its prompt is continued."""
    noise = (np.random.default_rng(0).standard_normal(4 * 24_000) * 3000).astype("<i2").tobytes()
    socket = Socket(service)
    for sound, expected in ((pcm, []), (bytes(len(pcm)), ["silent_clip"]), (noise, ["not_speech_or_piano"])):
        append(socket, sound)
        _, prompt = commit(socket)
        assert [one["code"] for one in prompt["warnings"]] == expected
        _, _, done = respond(socket, response=SHORT)
        assert [one["code"] for one in done["warnings"]] == expected
        form = {"prompt": (None, prompt["id"]), "seconds": (None, "0.1")}
        answer = service.wait(service.client.post("/continue", files=form)).json()
        assert [one["code"] for one in answer.get("warnings", [])] == expected
    socket.leave()
