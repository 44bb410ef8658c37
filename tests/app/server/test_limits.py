"""Limits of each client: requests and seconds of audio a minute, requests at the same time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import limits.aio.storage.memory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from app.errors import AudioTooLong, RateLimited
from app.metrics import Metrics
from app.server.limits import Limits, client_of
from app.settings import NamedKey, Settings
from tests.support.engine import busy, in_background, until

KEYS = {"api_keys": {"alice": "first", "bob": "second"}}
ALICE, BOB = {"x-api-key": "first"}, {"authorization": "Bearer second"}
SHORT = {"seconds": "0.1"}


def refused(answer: Any) -> None:
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id"}
    assert (error["code"], error["type"]) == ("rate_limited", "rate_limit_error")
    assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_none_by_default(serve: Any, clip: bytes) -> None:
    service = serve(**KEYS)
    for _ in range(5):
        assert service.post("/continue", clip, data=SHORT, headers=ALICE).status_code == 200
    assert not service.app.state.limits._storage.storage, "nothing is counted"


def test_requests_a_minute(serve: Any, clip: bytes) -> None:
    """Each key has its own; a refused request does not count, and its body is not read."""
    service = serve(**KEYS, limit_requests_per_minute=2)
    assert service.post("/continue", clip, data=SHORT, headers=ALICE).status_code == 200
    assert service.post("/score", clip, headers=ALICE).status_code == 200
    for path in ("/continue", "/v1/audio/continuations", "/score", "/v1/audio/scores"):
        refused(service.post(path, b"not even audio", headers=ALICE))
    assert service.value("rejected_total", reason="limit_requests") == 4
    assert service.value("audio_decode_seconds_count") == 2
    assert service.post("/continue", clip, data=SHORT, headers=BOB).status_code == 200
    assert service.get("/v1/models", headers=ALICE).status_code == 200, "what computes nothing is not limited"
    assert service.get("/readyz").status_code == 200


def test_a_wrong_key_uses_up_nobodys_share(serve: Any, clip: bytes) -> None:
    service = serve(**KEYS, limit_requests_per_minute=1)
    for _ in range(3):
        assert service.post("/score", clip, headers={"x-api-key": "wrong"}).status_code == 401
    assert service.post("/score", clip, headers=ALICE).status_code == 200


def test_audio_seconds_a_minute(serve: Any, clip: bytes) -> None:
    """What is sent counts, and what is asked for: 1.3 s, and twice 1 s."""
    service = serve(**KEYS, limit_audio_seconds_per_minute=6)
    fields = {"seconds": "1", "n": "2"}
    assert service.post("/continue", clip, data=fields, headers=ALICE).status_code == 200
    refused(service.post("/continue", clip, data=fields, headers=ALICE))
    assert service.value("rejected_total", reason="limit_audio") == 1
    assert service.post("/score", clip, headers=ALICE).status_code == 200, "that much was left"
    decoded = service.value("audio_decode_seconds_count")
    refused(service.post("/score", clip, headers=ALICE))
    assert service.value("audio_decode_seconds_count") == decoded, "nothing is left: known before the body is read"
    assert service.post("/score", clip, headers=BOB).status_code == 200
    assert service.app.state.engine.in_use == 0


def test_more_audio_than_a_minute_has_is_not_for_later(serve: Any, clip: bytes, speech: Any, to_file: Any) -> None:
    service = serve(limit_audio_seconds_per_minute=5)
    answer = service.post("/continue", clip, data={"seconds": "10"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "audio_too_long")
    long = to_file([0.0] * 24_000 * 6)
    one, other = service.post("/score", long, clip).json()["results"]
    assert one["error"]["code"] == "audio_too_long" and other["tokens"] == 100


def test_requests_at_the_same_time(serve: Any, clip: bytes) -> None:
    service = serve(**KEYS, limit_concurrent_requests=2, threads=1)
    with busy(service):
        inside = [in_background(service, "/score", clip)]  # without a key: never inside
        assert inside.pop().result(5).status_code == 401
        for headers in (ALICE, ALICE, BOB):
            sent = service.client.post("/score", files={"file": ("a", clip)}, headers=headers)
            inside.append(asyncio.run_coroutine_threadsafe(sent, service.loop))
        until(lambda: service.app.state.engine.in_use == 3)
        refused(service.post("/score", clip, headers=ALICE))
        assert service.value("rejected_total", reason="limit_concurrent") == 1
    assert [one.result(10).status_code for one in inside] == [200] * 3
    assert not service.app.state.limits.inside
    assert service.post("/score", clip, headers=ALICE).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"seconds": "99"}, 422), ({"stream": "true", "response_format": "pcm", "seconds": "0.2"}, 200)],
)
def test_every_way_out_gives_the_share_back(serve: Any, clip: bytes, fields: dict[str, str], status: int) -> None:
    service = serve(limit_concurrent_requests=1)
    for _ in range(3):
        assert service.post("/continue", clip, data=fields).status_code == status
        assert not service.app.state.limits.inside


def request_from(host: str | None, key: str | None = None) -> Any:
    client = None if host is None else SimpleNamespace(host=host)
    return SimpleNamespace(client=client, state=SimpleNamespace(**({} if key is None else {"key": key})))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("10.0.0.1", "10.0.0.1", True), ("10.0.0.1", "10.0.0.2", False), ("::ffff:10.0.0.1", "10.0.0.1", True),
     ("2001:db8::1", "2001:db8::ffff:2", True), ("2001:db8::1", "2001:db8:0:1::1", False),
     ("fe80::1%eth0", "fe80::2%eth0", True), (None, None, True), ("", "testclient", False)],
)  # fmt: skip
def test_clients_without_keys_are_addresses(one: str | None, other: str | None, same: bool) -> None:
    assert (client_of(request_from(one)) == client_of(request_from(other))) is same
    assert client_of(request_from(one, "alice")) == client_of(request_from("10.9.9.9", "alice")) == "key alice"


def test_keys_have_names() -> None:
    def names(given: Any) -> list[tuple[str, str]]:
        keys = Settings(api_keys=given).api_keys
        return [(key.name, key.get_secret_value()) for key in keys if isinstance(key, NamedKey)]

    assert names('{"alice": "first", "bob": "a,b"}') == [("alice", "first"), ("bob", "a,b")]
    assert names({"alice": "first"}) == [("alice", "first")]
    assert names("first,second") == names('["first", "second"]') == [("key-1", "first"), ("key-2", "second")]
    assert names([SecretStr("first")]) == [("key-1", "first")]
    for wrong in ('{"a b": "first"}', '{"": "first"}', '{"first": "first"}', '{"a": "second", "second": "x"}',
                  '{"a": " "}', '{"a"', '{"a": 1}'):  # fmt: skip
        with pytest.raises(ValueError, match="api_keys"):
            Settings(api_keys=wrong)


class Clock:
    """What the package asks for the time."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@settings(deadline=None)
@given(
    limit=st.integers(1, 50),
    costs=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 50)), min_size=1, max_size=30),
    begin=st.floats(1e9, 2e9),
)
def test_who_comes_back_when_told_is_served(limit: int, costs: list[tuple[int, float]], begin: float) -> None:
    """And not much sooner: the wait is right to a second."""

    async def run() -> None:
        clock = Clock(begin)
        patch.setattr(limits.aio.storage.memory, "time", clock)
        metrics = Metrics()
        counted = Limits(Settings(limit_audio_seconds_per_minute=limit), metrics)
        for cost, pause in costs:
            clock.now += pause
            try:
                await counted.audio("a", cost)
            except AudioTooLong:
                assert cost > limit
            except RateLimited as error:
                wait = int((error.headers or {})["retry-after"])
                assert 1 <= wait <= 120
                if wait > 1:
                    clock.now += wait - 1.01
                    assert counted._audio is not None
                    assert not await counted._limiter.test(counted._audio, "a", cost=cost)
                    clock.now -= wait - 1.01
                clock.now += wait + 0.001
                await counted.audio("a", cost)
        clock.now += 121
        await counted.audio("b", 1)
        await asyncio.sleep(0)
        assert len(counted._storage.storage) == len(counted._storage.expirations) == 1, "the others are forgotten"
        assert len(counted._storage.locks) <= 1

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(run())


def test_settings_of_limits() -> None:
    for name in ("limit_requests_per_minute", "limit_audio_seconds_per_minute", "limit_concurrent_requests"):
        assert getattr(Settings(), name) is None
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=name):
            Settings(**wrong)
