"""A body that crawls gives way when somebody waits for its place, and only then."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import app.server.bodies
from tests.support.engine import until

FORM = {"content-type": "multipart/form-data; boundary=q"}
HEAD = b'--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


class Upload:
    """A body whose first piece is sent at once, and its rest when it is told to go on."""

    def __init__(self, service: Any, path: str, first: bytes, rest: bytes) -> None:
        self._service, self._first, self._rest = service, first, rest
        self._go_on = asyncio.Event()
        sent = service.client.post(path, content=self._pieces(), headers=FORM)
        self.answer = asyncio.run_coroutine_threadsafe(sent, service.loop)

    async def _pieces(self) -> AsyncIterator[bytes]:
        yield self._first
        await self._go_on.wait()
        yield self._rest

    def go_on(self) -> Any:
        self._service.loop.call_soon_threadsafe(self._go_on.set)
        return self.answer.result(20)


@pytest.fixture
def service(serve: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a place for one request."""
    monkeypatch.setattr(app.server.bodies, "FAIR_AFTER_SECONDS", 0.05)
    return serve(queue=0, slots=1, threads=1)


def arrived(service: Any, count: int) -> None:
    """So many bytes are held, and have been for longer than anybody has to wait."""
    until(lambda: service.app.state.bodies.held >= count)
    service.wait(asyncio.sleep(0.1))


@pytest.mark.parametrize("path", ["/continue", "/score"])
def test_a_crawling_upload_gives_way(service: Any, clip: bytes, path: str) -> None:
    crawling = Upload(service, path, HEAD[:20], b"")
    arrived(service, 20)
    assert service.post("/continue", clip, data={"seconds": "0.1"}).status_code == 200
    answer = crawling.answer.result(5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "upload_timeout")
    assert "others wait" in answer.json()["error"]["message"]
    assert service.app.state.bodies.held == service.app.state.engine.in_use == 0


def test_the_slowest_gives_way(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.server.bodies, "FAIR_AFTER_SECONDS", 0.05)
    service = serve(queue=1, slots=1, threads=1)
    slow = Upload(service, "/score", HEAD + clip[:100], clip[100:] + b"\r\n--q--\r\n")
    arrived(service, len(HEAD) + 100)
    slower = Upload(service, "/score", HEAD[:1], b"")
    arrived(service, len(HEAD) + 101)
    assert service.post("/score", clip).status_code == 200
    assert slower.answer.result(5).status_code == 408
    assert slow.go_on().status_code == 200


def test_an_upload_that_comes_fast_keeps_its_place(service: Any, clip: bytes) -> None:
    fast = Upload(service, "/score", HEAD + clip, b"\r\n--q--\r\n")
    arrived(service, len(HEAD) + len(clip))
    refused = service.post("/continue", clip)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert fast.go_on().status_code == 200


def test_nobody_gives_way_while_there_is_room(serve: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.server.bodies, "FAIR_AFTER_SECONDS", 0.0)
    service = serve(queue=1, slots=1, threads=1)
    crawling = Upload(service, "/score", HEAD, clip + b"\r\n--q--\r\n")
    arrived(service, len(HEAD))
    assert service.post("/score", clip).status_code == 200
    assert crawling.go_on().status_code == 200


def test_who_has_sent_all_does_not_give_way(service: Any, clip: bytes) -> None:
    """However slowly it came: it is being answered now."""
    whole = Upload(service, "/continue", HEAD + clip + b"\r\n--q--\r\n", b"")
    body = next(iter(service.app.state.bodies._all), None)
    until(lambda: service.app.state.bodies.held >= len(HEAD))
    assert whole.go_on().status_code == 200
    assert body is None or not body.crawls
