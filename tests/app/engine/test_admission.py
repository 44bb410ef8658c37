"""What the gauges tell of permits: who computes, and who waits for it."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.support.engine import busy, in_background, until
from tests.support.service import Service
from tests.support.websocket import Socket

PCM = bytes(2 * 24_000)
FIELDS = {"seconds": 900, "seed": 7}


def test_a_session_waits_only_for_what_it_asks(serve: Callable[..., Service], clip: bytes) -> None:
    """A client that listens is no load; an alert on those that wait must not ring for it."""
    service = serve(slots=1, threads=1, max_seconds=1000)
    permits = ExitStack()

    async def hold() -> None:
        for _ in range(2):
            permits.enter_context(service.app.state.engine.acquire())

    async def let_go() -> None:
        permits.close()

    def gauges() -> tuple[float, float]:
        return service.value("requests_running"), service.value("requests_waiting")

    first, second = Socket(service), Socket(service)
    assert gauges() == (0, 0)
    for socket in (first, second):
        socket.send_bytes(PCM)
        socket.send("input_audio_buffer.commit")
        socket.until("input_audio_buffer.committed")
    until(lambda: gauges() == (0, 0))
    first.send("response.create", response=FIELDS)
    until(lambda: gauges() == (1, 0))
    service.wait(hold())  # for what makes it busy: one that reads, and one that scores
    with busy(service):
        until(lambda: gauges() == (3, 0))
        asked: list[Any] = [in_background(service, "/continue", clip, seconds="0.2") for _ in range(2)]
        until(lambda: gauges() == (3, 2))
    service.wait(let_go())
    first.send("response.cancel")
    assert all(one.result(60).status_code == 200 for one in asked)
    until(lambda: gauges() == (0, 0))
    first.send("response.create", response=FIELDS)
    until(lambda: gauges() == (1, 0))
    first.leave()
    second.leave()
    until(lambda: gauges() == (0, 0))
    assert service.app.state.engine.in_use == 0
