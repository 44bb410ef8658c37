"""A server's client for programs on an event loop: `app.client.sync`, awaited."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from app.client import calls
from app.client.calls import ApiError, Audio, AudioPart, Call, Events, Progress
from app.client.live import AsyncSession
from app.continuations.schemas import ContinuationSummary, ContinueResponse
from app.prompts.schemas import PromptResponse
from app.scores.schemas import ScoreResponse
from app.system.models import ModelList


class AsyncClient:
    """`app.client.Client`, with the same methods and arguments.

    Written out again, since each call is awaited here and types are to say so. Both share `app.client.calls`.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        key: str | None = None,
        *,
        retries: int = calls.RETRIES,
        timeout_seconds: float = calls.ANSWER_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._key, self._retries = calls.server_url(url), key, retries
        timeout = httpx.Timeout(timeout_seconds, connect=calls.CONNECT_SECONDS)
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url, headers=calls.headers_for(key), timeout=timeout, transport=transport
            )
        except httpx.InvalidURL as error:
            raise calls.broken(url, error, False) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def generate(
        self, file: Audio | None = None, *, progress: Progress | None = None, **fields: Any
    ) -> ContinueResponse:
        """Continues a clip, or what ``prompt`` or ``continue_from`` names: the whole answer, audio in base64."""
        answer = await self.send(calls.continuing(file, fields, progress))
        return ContinueResponse.model_validate_json(answer.content)

    async def audio(
        self,
        file: Audio | None = None,
        *,
        response_format: str = "wav",
        progress: Progress | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """The same as a sound file (``content``), with its numbers in ``headers``."""
        return await self.send(calls.continuing(file, {**fields, "response_format": response_format}, progress))

    async def stream(
        self, file: Audio | None = None, *, progress: Progress | None = None, **fields: Any
    ) -> AsyncGenerator[AudioPart | ContinuationSummary, None]:
        """The continuation while it is made: parts, and the numbers of the whole at the end."""
        call = calls.continuing(file, {**fields, "stream": True, "response_format": "json"}, progress)
        events = Events()
        async with self.opened(call) as answer:
            async for line in answer.aiter_lines():
                event = events.feed(line)
                if event is not None:
                    yield event

    async def stream_audio(
        self,
        file: Audio | None = None,
        *,
        response_format: str = "pcm",
        begun: Callable[[Mapping[str, str]], None] = lambda headers: None,
        **fields: Any,
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a sound file while it is made; ``begun`` gets the answer's headers before the first."""
        call = calls.continuing(file, {**fields, "stream": True, "response_format": response_format})
        async with self.opened(call) as answer:
            begun(answer.headers)
            async for part in answer.aiter_raw():
                yield part

    async def score(self, files: Iterable[Audio], *, progress: Progress | None = None, **fields: Any) -> ScoreResponse:
        """How likely clips are, in the order given; one that cannot be scored has an error in its place."""
        return ScoreResponse.model_validate_json((await self.send(calls.scoring(files, fields, progress))).content)

    async def report(self, files: Iterable[Audio], response_format: str, **fields: Any) -> bytes:
        """The same as a file: csv, jsonl, zerospeech; of one clip also audacity, textgrid, png."""
        return (await self.send(calls.scoring(files, {**fields, "response_format": response_format}))).content

    async def keep_prompt(self, file: Audio, *, progress: Progress | None = None, **fields: Any) -> PromptResponse:
        """Has a clip read once; its ``id`` is the ``prompt`` of calls to come."""
        return PromptResponse.model_validate_json((await self.send(calls.keeping(file, fields, progress))).content)

    async def forget(self, name: str) -> None:
        """Has a prompt that is kept forgotten, or a continuation."""
        await self.send(Call(f"/v1/audio/prompts/{name}", method="DELETE"))

    async def models(self) -> ModelList:
        """What is served."""
        return ModelList.model_validate_json((await self.send(Call("/v1/models", method="GET"))).content)

    def session(self, model: str | None = None) -> AsyncSession:
        """A live session with a model of the server's, by default its first; to be used with `async with`."""
        return AsyncSession(self.url, self._key, model)

    async def send(self, call: Call) -> httpx.Response:
        """The whole answer, a 200. Raises ApiError."""
        async with self.opened(call) as answer:
            await answer.aread()
            return answer

    @asynccontextmanager
    async def opened(self, call: Call) -> AsyncIterator[httpx.Response]:
        """An answer whose head has come, and is a 200. Raises ApiError, also for what breaks while it is read."""
        answer = await self._begun(call)
        try:
            yield answer
        except httpx.HTTPError as error:
            raise calls.broken(self.url, error, True) from error
        finally:
            await answer.aclose()

    async def _begun(self, call: Call) -> httpx.Response:
        tried = 0
        while True:
            try:
                answer = await self._http.send(call.request(self._http), stream=True)
                if answer.status_code == 200:
                    return answer
                await answer.aread()
                await answer.aclose()
                raise calls.error_of(answer)
            except (ApiError, httpx.HTTPError) as error:
                pause = calls.pause_seconds(tried, error, self._retries)
                if pause is None:
                    raise (error if isinstance(error, ApiError) else calls.broken(self.url, error, False)) from error
            tried += 1
            await asyncio.sleep(pause)
