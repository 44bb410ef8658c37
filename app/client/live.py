"""A live session as a client has it: events of docs/api.md go out and come in."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from app.client import calls
from app.client.calls import ApiError

PATH = "/v1/audio/session"
Event = dict[str, Any]  # one of `app.sessions.schemas`, by its `type`


def _address(url: str, model: str | None) -> str:
    query = "" if model is None else f"?model={quote(model, safe='')}"
    return "ws" + calls.server_url(url).removeprefix("http") + PATH + query


def _refused(url: str, error: Exception) -> ApiError:
    if isinstance(error, InvalidStatus):
        try:
            told = json.loads(error.response.body or b"")["error"]
            return ApiError(told["message"], error.response.status_code, told["code"], told.get("param"))
        except (json.JSONDecodeError, KeyError, TypeError):
            return ApiError(f"the server answered {error.response.status_code}", error.response.status_code)
    return ApiError(f"no session with {url}: {error}")


def _event(text: str | bytes) -> Event:
    event: Event = json.loads(text)
    return event


def pcm(event: Event) -> bytes:
    """The samples of a `response.output_audio.delta`: s16le, 24 kHz, mono."""
    return base64.b64decode(event["delta"])


class Session:
    """A session; `with` opens it. Iterating gives the server's events until it closes. Raises ApiError."""

    def __init__(self, url: str, key: str | None, model: str | None = None) -> None:
        self._url, self._key, self._model = url, key, model
        self._socket: ClientConnection | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        headers = calls.headers_for(self._key)
        try:
            opening = connect(_address(self._url, self._model), additional_headers=headers, compression=None)
            self._socket = self._held.enter_context(opening)
        except (OSError, WebSocketException) as error:
            raise _refused(self._url, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _send(self, message: str | bytes) -> None:
        assert self._socket is not None, "use it with `with`"
        try:
            self._socket.send(message)
        except ConnectionClosed as error:
            raise ApiError(f"the session is closed: {error}") from error

    def send(self, kind: str, **fields: Any) -> None:
        """An event of a client."""
        self._send(json.dumps({"type": kind, **fields}))

    def append(self, samples: bytes) -> None:
        """Audio as it is recorded: s16le, mono, or what the session's `input_audio_format` says."""
        self._send(samples)

    def commit(self) -> None:
        """What was appended is the prompt."""
        self.send("input_audio_buffer.commit")

    def respond(self, after: str = "prompt", **fields: Any) -> None:
        """Have the prompt, or the last response, continued."""
        self.send("response.create", after=after, response=fields)

    def interrupt(self) -> None:
        """Stop the response that is under way."""
        self.send("response.cancel")

    def event(self, timeout_seconds: float | None = None) -> Event | None:
        """The server's next event; None when there is none in time. Raises ApiError when the session is closed."""
        assert self._socket is not None, "use it with `with`"
        try:
            return _event(self._socket.recv(timeout_seconds))
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            raise ApiError(f"the session is closed: {error}") from error

    def __iter__(self) -> Iterator[Event]:
        assert self._socket is not None, "use it with `with`"
        try:
            for text in self._socket:
                yield _event(text)
        except ConnectionClosed as error:  # other than by a close that was meant
            raise ApiError(f"the session is closed: {error}") from error


class AsyncSession:
    """The same on an event loop; `async with` opens it."""

    def __init__(self, url: str, key: str | None, model: str | None = None) -> None:
        self._url, self._key, self._model = url, key, model
        self._socket: AsyncConnection | None = None
        self._held = AsyncExitStack()

    async def __aenter__(self) -> Self:
        headers = calls.headers_for(self._key)
        try:
            opening = connect_async(_address(self._url, self._model), additional_headers=headers, compression=None)
            self._socket = await self._held.enter_async_context(opening)
        except (OSError, WebSocketException) as error:
            raise _refused(self._url, error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def _send(self, message: str | bytes) -> None:
        assert self._socket is not None, "use it with `async with`"
        try:
            await self._socket.send(message)
        except ConnectionClosed as error:
            raise ApiError(f"the session is closed: {error}") from error

    async def send(self, kind: str, **fields: Any) -> None:
        """An event of a client."""
        await self._send(json.dumps({"type": kind, **fields}))

    async def append(self, samples: bytes) -> None:
        """Audio as it is recorded: s16le, mono, or what the session's `input_audio_format` says."""
        await self._send(samples)

    async def commit(self) -> None:
        """What was appended is the prompt."""
        await self.send("input_audio_buffer.commit")

    async def respond(self, after: str = "prompt", **fields: Any) -> None:
        """Have the prompt, or the last response, continued."""
        await self.send("response.create", after=after, response=fields)

    async def interrupt(self) -> None:
        """Stop the response that is under way."""
        await self.send("response.cancel")

    async def event(self, timeout_seconds: float | None = None) -> Event | None:
        """The server's next event; None when there is none in time. Raises ApiError when the session is closed."""
        assert self._socket is not None, "use it with `async with`"
        try:
            async with asyncio.timeout(timeout_seconds):
                return _event(await self._socket.recv())
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            raise ApiError(f"the session is closed: {error}") from error

    async def __aiter__(self) -> AsyncIterator[Event]:
        assert self._socket is not None, "use it with `async with`"
        try:
            async for text in self._socket:
                yield _event(text)
        except ConnectionClosed as error:
            raise ApiError(f"the session is closed: {error}") from error
