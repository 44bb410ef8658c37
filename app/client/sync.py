"""A server's client for programs that wait."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from app.client import calls
from app.client.calls import ApiError, Audio, AudioPart, Call, Events, Progress
from app.client.live import Session
from app.continuations.schemas import ContinuationSummary, ContinueResponse
from app.prompts.schemas import PromptResponse
from app.scores.schemas import ScoreResponse
from app.system.models import ModelList


class Client:
    """Calls of one server. To be used with `with`, or closed.

    What fails raises `ApiError`, with the server's own code; what it refuses for lack of room is tried again when it
    says so (Retry-After), ``retries`` times. Fields are those of docs/api.md, as keywords.

    Args:
        url: the server's address.
        key: an API key, where it wants one.
        retries: more tries of a call; 0 for none.
        timeout_seconds: for the answer to begin, or to go on.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        key: str | None = None,
        *,
        retries: int = calls.RETRIES,
        timeout_seconds: float = calls.ANSWER_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self._key, self._retries = calls.server_url(url), key, retries
        timeout = httpx.Timeout(timeout_seconds, connect=calls.CONNECT_SECONDS)
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=calls.headers_for(key), timeout=timeout, transport=transport
            )
        except httpx.InvalidURL as error:
            raise calls.broken(url, error, False) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(
        self, file: Audio | None = None, *, progress: Progress | None = None, **fields: Any
    ) -> ContinueResponse:
        """Continues a clip, or what ``prompt`` or ``continue_from`` names: the whole answer, audio in base64."""
        answer = self.send(calls.continuing(file, fields, progress))
        return ContinueResponse.model_validate_json(answer.content)

    def audio(
        self,
        file: Audio | None = None,
        *,
        response_format: str = "wav",
        progress: Progress | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """The same as a sound file (``content``), with its numbers in ``headers``."""
        return self.send(calls.continuing(file, {**fields, "response_format": response_format}, progress))

    def stream(
        self, file: Audio | None = None, *, progress: Progress | None = None, **fields: Any
    ) -> Iterator[AudioPart | ContinuationSummary]:
        """The continuation while it is made: parts, and the numbers of the whole at the end.

        Whoever stops to iterate ends it: close the iterator, and the server stops within a step.
        """
        call = calls.continuing(file, {**fields, "stream": True, "response_format": "json"}, progress)
        events = Events()
        with self.opened(call) as answer:
            for line in answer.iter_lines():
                event = events.feed(line)
                if event is not None:
                    yield event

    def stream_audio(
        self,
        file: Audio | None = None,
        *,
        response_format: str = "pcm",
        begun: Callable[[Mapping[str, str]], None] = lambda headers: None,
        **fields: Any,
    ) -> Iterator[bytes]:
        """The bytes of a sound file while it is made; ``begun`` gets the answer's headers before the first."""
        call = calls.continuing(file, {**fields, "stream": True, "response_format": response_format})
        with self.opened(call) as answer:
            begun(answer.headers)
            yield from answer.iter_raw()

    def score(self, files: Iterable[Audio], *, progress: Progress | None = None, **fields: Any) -> ScoreResponse:
        """How likely clips are, in the order given; one that cannot be scored has an error in its place."""
        return ScoreResponse.model_validate_json(self.send(calls.scoring(files, fields, progress)).content)

    def report(self, files: Iterable[Audio], response_format: str, **fields: Any) -> bytes:
        """The same as a file: csv, jsonl, zerospeech; of one clip also audacity, textgrid, png."""
        return self.send(calls.scoring(files, {**fields, "response_format": response_format})).content

    def keep_prompt(self, file: Audio, *, progress: Progress | None = None, **fields: Any) -> PromptResponse:
        """Has a clip read once; its ``id`` is the ``prompt`` of calls to come."""
        return PromptResponse.model_validate_json(self.send(calls.keeping(file, fields, progress)).content)

    def forget(self, name: str) -> None:
        """Has a prompt that is kept forgotten, or a continuation."""
        self.send(Call(f"/v1/audio/prompts/{name}", method="DELETE"))

    def models(self) -> ModelList:
        """What is served."""
        return ModelList.model_validate_json(self.send(Call("/v1/models", method="GET")).content)

    def session(self, model: str | None = None) -> Session:
        """A live session with a model of the server's, by default its first; to be used with `with`."""
        return Session(self.url, self._key, model)

    def send(self, call: Call) -> httpx.Response:
        """The whole answer, a 200. Raises ApiError."""
        with self.opened(call) as answer:
            answer.read()
            return answer

    @contextmanager
    def opened(self, call: Call) -> Iterator[httpx.Response]:
        """An answer whose head has come, and is a 200. Raises ApiError, also for what breaks while it is read."""
        answer = self._begun(call)
        try:
            yield answer
        except httpx.HTTPError as error:
            raise calls.broken(self.url, error, True) from error
        finally:
            answer.close()

    def _begun(self, call: Call) -> httpx.Response:
        tried = 0
        while True:
            try:
                answer = self._http.send(call.request(self._http), stream=True)
                if answer.status_code == 200:
                    return answer
                answer.read()
                answer.close()
                raise calls.error_of(answer)
            except (ApiError, httpx.HTTPError) as error:
                pause = calls.pause_seconds(tried, error, self._retries)
                if pause is None:
                    raise (error if isinstance(error, ApiError) else calls.broken(self.url, error, False)) from error
            tried += 1
            time.sleep(pause)
