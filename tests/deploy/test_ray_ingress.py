"""What a replica tells the application, without Ray: who has left, and what became of an answer."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deploy.ray_ingress import EndedEarly, Ingress


def scope(kind: str = "http", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": kind, "headers": list(headers)}


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def sent_by(app: Any, asked: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await Ingress(app)(asked, never, send)
    return sent


def answers(*bodies: tuple[bytes, bool], headers: tuple[tuple[bytes, bytes], ...] = ()) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        for body, more in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


@pytest.mark.parametrize(("kind", "told"), [("http", "http.disconnect"), ("websocket", "websocket.disconnect")])
def test_a_cancelled_handler_is_a_client_that_left(kind: str, told: str) -> None:
    """The application ends by itself, and is not cancelled, though it waited for something else at that moment."""
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        message = await asked
        heard.append(message["type"])
        heard.append((await receive())["type"])

    async def visit() -> None:
        async def send(message: Message) -> None:
            raise AssertionError(message)

        handler = asyncio.ensure_future(Ingress(app)(scope(kind), never, send))
        await asyncio.sleep(0.01)
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler

    asyncio.run(visit())
    assert heard == [told, told]


def test_what_came_while_a_caller_was_cancelled_is_not_lost() -> None:
    got: list[Any] = []

    async def visit() -> None:
        come = asyncio.Event()

        async def receive() -> Message:
            await come.wait()
            return {"type": "http.request", "body": b"all", "more_body": False}

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            first = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            first.cancel()
            come.set()
            got.append(await receive())

        async def send(message: Message) -> None: ...

        await Ingress(app)(scope(), receive, send)

    asyncio.run(visit())
    assert got[0]["body"] == b"all"


def test_an_answer_without_its_end_is_an_error() -> None:
    assert [one.get("body") for one in asyncio.run(sent_by(answers((b"a", True), (b"", False)), scope()))][1:] == [
        b"a", b"",
    ]  # fmt: skip
    with pytest.raises(EndedEarly):
        asyncio.run(sent_by(answers((b"a", True)), scope()))


def test_an_id_stands_in_an_answer_once() -> None:
    """Ray's proxy adds that of the request; another one is ours, where the request's is none that we take."""
    request = (b"x-request-id", b"mine")
    for own, stays in ((b"mine", False), (b"another", True)):
        app = answers((b"", False), headers=((b"x-request-id", own), (b"etag", b"1")))
        start = asyncio.run(sent_by(app, scope("http", request)))[0]
        assert start["headers"] == [(b"x-request-id", own)] * stays + [(b"etag", b"1")]


def test_nothing_is_waited_for_when_the_application_has_ended() -> None:
    """It looks for its client all along, and Ray tells nothing more of one that stays."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        watch.cancel()

    async def visit() -> set[Any]:
        async def send(message: Message) -> None: ...

        await Ingress(app)(scope(), never, send)
        await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(visit())
