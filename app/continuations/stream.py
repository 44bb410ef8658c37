"""A continuation that is sent while it is made: bare audio in chunks, or server-sent events."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import cast

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from app.audio.encode import PcmEncoder, encoder
from app.audio.formats import MEDIA_TYPES, StreamFormat
from app.audio.mixing import limit, opening
from app.audio.samples import Samples
from app.continuations.answers import ContinuationRequest, finished, headers, keep, summary
from app.continuations.schemas import Delta
from app.engine.requests import AudioChunk, GenerationResult, PrefillDone
from app.errors import ClientGone, Draining, ServiceError
from app.prompts.service import too_short
from app.server.disconnect import unless_gone
from app.server.errors import as_service_error
from app.server.logs import note
from app.server.responses import Stalled, handed_over
from app.server.schemas import ErrorBody, ErrorResponse
from app.server.sse import event
from model.constants import SAMPLE_RATE_HZ
from model.inference.scoring import TooShortError

BLOCK_SAMPLES = SAMPLE_RATE_HZ // 4  # encoded on the event loop without a pause: about 2 ms of its time (MP3)
LAST_WORDS_SECONDS = 1.0  # for an error event to be taken, when the server is about to stop
log = logging.getLogger("whispergpt")


class EventBuffer:
    """Takes a request's events from the engine as they come, so that no reader, however slow, holds the engine up.

    What waits here for the reader is bounded by the request: `max_seconds` x n of samples. Its permit is given
    back when all is generated and there is room among the server's ``unread``, which bound how many such answers wait.
    ``ended`` is told the result at once, whatever the reader does: what it holds beside the answer must not wait here.
    """

    def __init__(
        self,
        events: AsyncGenerator[PrefillDone | AudioChunk | GenerationResult, None],
        permit: AsyncExitStack,
        unread: asyncio.Semaphore,
        ended: Callable[[GenerationResult], None] = lambda result: None,
    ) -> None:
        self._events, self._permit, self._unread, self._ended = events, permit, unread, ended
        self._waiting: asyncio.Queue[PrefillDone | AudioChunk | GenerationResult | Exception] = asyncio.Queue()
        self._peeked: PrefillDone | AudioChunk | GenerationResult | None = None
        self._may_wait = False
        self.complete = False  # the engine has done its part
        self._task = asyncio.create_task(self._take())

    async def _take(self) -> None:
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if isinstance(event, GenerationResult):
                        self._ended(event)
                    self._waiting.put_nowait(event)
        except Exception as error:  # the reader's to raise, after what was made before it
            self._waiting.put_nowait(error)
        self.complete = True
        await self._unread.acquire()
        self._may_wait = True
        await self._permit.aclose()

    async def next(self) -> PrefillDone | AudioChunk | GenerationResult:
        """The next event. Raises what the engine raised."""
        event, self._peeked = await self.peek(), None
        return event

    async def peek(self) -> PrefillDone | AudioChunk | GenerationResult:
        """The same; it stays the next one."""
        if self._peeked is None:
            event = await self._waiting.get()
            if isinstance(event, Exception):
                try:
                    raise event
                finally:
                    del event  # the error holds this frame: they would keep each other alive, and all that was made
            self._peeked = event
        return self._peeked

    async def close(self) -> None:
        """Cancels the request when it still runs, and gives everything back."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._events.aclose()
        self._waiting = asyncio.Queue()  # an error in there would hold `_take`'s frame, and so this buffer
        if self._may_wait:
            self._may_wait = False
            self._unread.release()
        await self._permit.aclose()


@dataclass(frozen=True)
class Opened:
    """A stream that has something to send: what can go wrong with a status code of its own has not."""

    asked: ContinuationRequest
    started: PrefillDone
    events: EventBuffer

    def opening(self) -> Iterator[Samples]:
        """The prompt's own samples in blocks, none when they were not asked for."""
        if self.asked.form.include_prompt:
            yield from blocks(opening(self.asked.own, self.started.tail))


def blocks(samples: Samples) -> Iterator[Samples]:
    for start in range(0, len(samples), BLOCK_SAMPLES):
        yield samples[start : start + BLOCK_SAMPLES]


async def opened(request: Request, asked: ContinuationRequest, permit: AsyncExitStack) -> Opened:
    """Starts a stream and waits for what is to be sent first; takes over the ``permit``. Raises ServiceError."""
    state = request.app.state
    ended = partial(keep, request, asked)
    events = EventBuffer(state.engine.stream(asked.engine_request), permit.pop_all(), state.unread, ended)
    try:
        started = await events.next()
        if not asked.form.include_prompt:
            await events.peek()  # nothing can be sent before, and an error still has a status of its own
    except TooShortError as error:
        await events.close()
        raise too_short() from error
    except BaseException:
        await events.close()
        raise
    assert isinstance(started, PrefillDone), started
    asked.engine_request.forget()  # the prompt has been read; only what is to be sent of it is kept
    return Opened(asked, started, events)


def delta(index: int, samples: Samples, tokens: list[int], logprobs: list[float]) -> bytes:
    """The event of some samples of a choice, limited already."""
    audio = base64.b64encode(PcmEncoder().feed(samples)).decode()
    return event("audio.delta", Delta(index=index, audio=audio, tokens=tokens, logprobs=logprobs))


class StreamedResponse(Response):
    """Sends a stream as it is made; ends the request when the client leaves.

    An error after the first byte is an `audio.error` event. Bare audio has no room for one, nor for the word that the
    server stopped before the end: there the response is left without its end, upon which the server cuts the
    connection, so that no client takes a part for the whole.
    """

    def __init__(self, request: Request, stream: Opened) -> None:
        form = stream.asked.form.response_format
        self.status_code, self.background = 200, None
        self.media_type = "text/event-stream" if form == "json" else MEDIA_TYPES[form]
        # no-store: each answer is its own. The other keeps nginx from gathering 4 KiB before it sends anything.
        proxies = {"cache-control": "no-store", "x-accel-buffering": "no"}
        self.init_headers(headers(stream.asked, stream.started.prompt_logprobs) | proxies)
        self._request, self._stream, self._form = request, stream, form
        self._made_audio = False  # what is sent next holds audio that the model made
        self._first_audio_seconds = 0.0
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = self._request.app.state.metrics
        try:
            await unless_gone(self._request, self._send_all(send), self._stage)
        except ClientGone as gone:
            metrics.disconnects.labels(gone.stage).inc()
            self._request.state.outcome = "disconnected"
            note(self._request, left_at=gone.stage)
        except asyncio.CancelledError:  # the server stops, and its patience is at an end
            await self._break(send, Draining("the server is shutting down"))
            raise
        finally:
            await self._stream.events.close()

    def _stage(self) -> str:
        return "send" if self._stream.events.complete else self._stream.asked.stage()

    async def _send_all(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._begun = True
            async with aclosing(self._events() if self._form == "json" else self._audio()) as chunks:
                async for chunk in chunks:
                    if chunk:
                        await self._send(send, chunk)
                    await asyncio.sleep(0)  # a server's send does not pause while the client keeps up
            await self._send(send, b"", more=False)
        except Stalled:
            raise ClientGone("stalled") from None
        except Exception as error:
            await self._break(send, as_service_error(self._request, error))

    async def _send(self, send: Send, chunk: bytes, more: bool = True) -> None:
        """Hands bytes to the socket; waits while its buffer is full. Raises Stalled."""
        seconds = self._request.app.state.settings.send_timeout_seconds
        await handed_over(send, {"type": "http.response.body", "body": chunk, "more_body": more}, seconds)
        if self._made_audio and not self._first_audio_seconds:
            self._first_audio_seconds = time.monotonic() - self._stream.asked.engine_request.arrived
            self._request.app.state.metrics.first_sent_seconds.observe(self._first_audio_seconds)

    async def _break(self, send: Send, error: ServiceError) -> None:
        state = self._request.state
        log.error("the stream of request %s broke: %s", state.request_id, error.code)
        self._request.app.state.metrics.broken.labels(error.code).inc()
        state.outcome = "server_error"
        note(self._request, error=error.code)
        if self._form != "json" or not self._begun:
            return
        words = event("audio.error", ErrorResponse(error=ErrorBody(**error.body(state.request_id))))
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await send({"type": "http.response.body", "body": words, "more_body": False})

    async def _audio(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the file."""
        file = encoder(cast(StreamFormat, self._form))
        try:
            yield file.head
            for block in self._stream.opening():
                yield file.feed(block)
            while isinstance(latest := await self._stream.events.next(), AudioChunk):
                self._made_audio = True
                for block in blocks(limit(latest.samples)):
                    yield file.feed(block)
            assert isinstance(latest, GenerationResult), latest
            finished(self._request, self._stream.asked, latest, self._first_audio_seconds)
            if latest.finish_reason == "cancelled":
                raise Draining("the server is shutting down")
            yield file.finish()
        finally:
            file.close()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """`audio.delta` for every piece, the prompt's for each choice first, and `audio.done`."""
        for block in self._stream.opening():
            for index in range(self._stream.asked.form.n):
                yield delta(index, block, [], [])
        while isinstance(latest := await self._stream.events.next(), AudioChunk):
            self._made_audio = True
            yield delta(latest.choice, limit(latest.samples), latest.tokens.tolist(), latest.logprobs.tolist())
        assert isinstance(latest, GenerationResult), latest
        finished(self._request, self._stream.asked, latest, self._first_audio_seconds)
        done = summary(self._request, self._stream.asked, latest, self._first_audio_seconds)
        yield event("audio.done", done, sparse=True)
