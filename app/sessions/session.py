"""One session: events in, events out. Audio is read in the order in which it comes; one response is made meanwhile."""

import asyncio
import base64
import binascii
import time
from contextlib import aclosing, suppress

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from app.audio.character import heard_notices
from app.audio.encode import PcmEncoder
from app.audio.incoming import IncomingPcm
from app.audio.mixing import limit
from app.audio.notices import Notice
from app.audio.samples import Samples
from app.engine.engine import Engine
from app.engine.requests import AudioChunk, ContinueRequest, GenerationResult, Listened, Model, PrefillDone, ReadPrompt
from app.errors import AudioInvalid, Draining, InvalidParameter, ServiceError
from app.prompts.service import owner_of
from app.prompts.store import Kept, Store, new_id
from app.server.errors import as_service_error
from app.server.limits import Limits, client_of
from app.server.responses import Stalled
from app.server.schemas import ErrorBody
from app.sessions import schemas
from app.sessions.decoding import IncomingOpus, LiveDecoder
from app.sessions.listening import Listening
from app.settings import Settings
from model.constants import FRAME_RATE_HZ, frames_for_seconds

LOOK_SECONDS = 0.5  # between two looks at whether the server drains, or the client has been silent for too long
LAST_WORDS_SECONDS = 1.0  # for a close to be taken: where the client takes nothing, not even that goes out
GOING_AWAY, STALLED_CODE = 1001, 1008  # RFC 6455, section 7.4.1


class Session:
    """Serves an accepted WebSocket until it is closed; whoever calls holds its permit."""

    def __init__(self, socket: WebSocket, model: Model) -> None:
        state = socket.app.state
        self._socket, self._model = socket, model
        self._engine: Engine = state.engine
        self._settings: Settings = state.settings
        self._store: Store = state.prompts
        self._limits: Limits = state.limits
        self._owner, self._client = owner_of(socket), client_of(socket)
        self._options = schemas.SessionOptions()
        self._decoder: LiveDecoder | None = None  # of what is not PCM
        self._listening = self._new_listening()
        self._prompt: ReadPrompt | None = None  # of the last commit
        self._notices: tuple[Notice, ...] = ()  # of that prompt
        self._end: ReadPrompt | None = None  # of the last response
        self._response: asyncio.Task[None] | None = None
        self._told: schemas.ResponseTold | None = None  # of that response, so far
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Takes events until the client leaves, is silent for too long, or the server stops."""
        coming: asyncio.Task[schemas.AnyClientEvent | bytes | None] | None = None
        heard = time.monotonic()
        try:
            await self._tell_session("session.created")
            while True:
                coming = coming or asyncio.create_task(self._next())
                await asyncio.wait({coming}, timeout=LOOK_SECONDS)
                if self._response is not None and self._response.done():
                    self._response.result()  # a client that takes nothing ends the session
                    self._response, heard = None, time.monotonic()
                silent = 0.0 if coming.done() else time.monotonic() - heard  # a microphone never is
                if self._response is None and self._over(silent):
                    await self._part()
                    return
                if not coming.done():
                    continue
                event, coming, heard = await self._taken(coming), None, time.monotonic()
                if event is None:
                    return
        except Stalled:
            await self._close(STALLED_CODE)
        except WebSocketDisconnect:
            pass
        finally:
            for task in (coming, self._response):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)  # its error is that of a client that has left
            if self._decoder is not None:
                await self._decoder.close()

    def _over(self, silent_seconds: float) -> bool:
        return self._engine.draining or silent_seconds > self._settings.session_idle_seconds

    async def _part(self) -> None:
        if self._engine.draining:
            await self._tell_error(Draining("the server is shutting down"))
        await self._close(GOING_AWAY)

    async def _close(self, code: int) -> None:
        """The permit is not held for a client that does not take its close: the system ends that connection."""
        with suppress(TimeoutError, WebSocketDisconnect):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._socket.close(code)

    async def _next(self) -> schemas.AnyClientEvent | bytes | None:
        """The next event; bare audio as bytes; None when the client has left. Raises InvalidParameter."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data: bytes | None = message.get("bytes")
        return schemas.client_event(message["text"]) if data is None else data

    async def _taken(self, coming: "asyncio.Task[schemas.AnyClientEvent | bytes | None]") -> object | None:
        """What came, after it has been served; what was wrong with it has been told. None when the client has left."""
        event = None
        try:
            event = coming.result()
            if event is not None:
                await self._serve(event)
        except (Stalled, WebSocketDisconnect):
            raise
        except Exception as error:
            await self._tell_error(as_service_error(self._socket, error), getattr(event, "event_id", None))
            return error
        return event

    async def _serve(self, event: schemas.AnyClientEvent | bytes) -> None:
        match event:
            case bytes():
                await self._append(event)
            case schemas.Append():
                try:
                    data = base64.b64decode(event.audio, validate=True)
                except binascii.Error:
                    raise AudioInvalid("audio: is no base64", "audio") from None
                await self._append(data)
            case schemas.Commit():
                await self._commit()
            case schemas.Clear():
                if self._listening.seconds:  # it was read as it came: as much work as what is committed
                    await self._limits.audio(self._client, self._listening.seconds)
                unwanted, self._listening = self._listening, self._new_listening()
                await unwanted.forget()
                await self._send(schemas.Cleared())
            case schemas.SessionUpdate():
                await self._update(self._options.updated(event.session))
                await self._tell_session("session.updated")
            case schemas.CreateResponse():
                await self._create(event)
            case schemas.CancelResponse():
                await self._cancel()

    def _new_listening(self) -> Listening:
        settings = self._settings
        decoder = self._decoder
        incoming = IncomingPcm(self._options.sample_rate) if decoder is None else IncomingOpus(decoder)
        return Listening(self._engine, self._model, incoming, settings.max_prompt_seconds, settings.timeout_seconds)

    async def _update(self, options: schemas.SessionOptions) -> None:
        old = self._options
        another = options.input_audio_format != old.input_audio_format
        if another or options.sample_rate != old.sample_rate:
            if self._listening.seconds:
                name = "input_audio_format" if another else "sample_rate"
                raise InvalidParameter(f"{name}: commit or clear first what was appended", name)
            if another:
                await self._decode(options.input_audio_format)
            self._options = options
            self._listening = self._new_listening()
        self._options = options

    async def _decode(self, form: schemas.InputFormat) -> None:
        """Has a process ready for what is not PCM. Raises DecoderLost, upon which nothing has changed."""
        decoder = None
        if form != "pcm16":
            decoder = LiveDecoder(form, self._socket.app.state.metrics)
            await decoder.start()
        before, self._decoder = self._decoder, decoder
        if before is not None:
            await before.close()

    async def _append(self, data: bytes) -> None:
        wrong = await self._listening.feed(data)
        while self._listening.ready:
            await self._scored(await self._listening.read())
        if wrong is not None:
            raise wrong

    async def _scored(self, read: Listened) -> None:
        first = self._listening.tokens - len(read.tokens)
        tokens, logprobs = read.tokens.tolist(), read.logprobs.tolist()
        await self._send(schemas.Scored(first=first, tokens=tokens, logprobs=logprobs, nll=self._listening.nll))

    async def _commit(self) -> None:
        """What was appended becomes the prompt. A commit beyond the limits leaves it as it was; any other takes it."""
        listening = self._listening
        await self._limits.audio(self._client, listening.seconds)
        self._listening = self._new_listening()
        await listening.finish()
        while listening.ready:
            await listening.read()
        read = await listening.read(last=True)
        assert read.prompt is not None, "the last chunk"
        self._prompt = read.prompt
        name = new_id("prompt")
        samples = listening.samples
        self._notices = await asyncio.to_thread(heard_notices, samples)
        held = self._kept([read.prompt], samples, self._notices)
        kept = self._store.keep("prompt", self._owner, name, held, self._client)
        seconds, tokens = listening.tokens / FRAME_RATE_HZ, listening.tokens
        told = schemas.PromptTold(
            id=name if kept else None, seconds=seconds, tokens=tokens, nll=listening.nll, warnings=list(self._notices)
        )
        await self._send(schemas.Committed(prompt=told))

    async def _create(self, event: schemas.CreateResponse) -> None:
        arrived = time.monotonic()
        if self._response is not None and not self._response.done():
            raise InvalidParameter("response.create: a response is under way, cancel it first", "type")
        read = self._prompt if event.after == "prompt" else self._end
        if read is None:
            what = "commit a prompt first" if event.after == "prompt" else "no response has come to its end"
            raise InvalidParameter(f"response.create: {what}", "after")
        form = schemas.form(self._options.response | event.response).seeded()
        if form.seconds > self._settings.max_seconds:
            raise InvalidParameter(f"seconds: at most {self._settings.max_seconds:g}", "seconds")
        await self._limits.request(self._client)
        frames = frames_for_seconds(form.seconds)
        await self._limits.audio(self._client, form.n * frames / FRAME_RATE_HZ)
        if self._engine.draining:
            raise Draining("the server is shutting down")
        until = arrived + min(form.timeout_seconds or self._settings.timeout_seconds, self._settings.timeout_seconds)
        asked = ContinueRequest(arrived, until, None, frames, form.sampling(), form.n, read, True, model=self._model)
        asked.within_session = True
        name = new_id("continuation")
        assert form.seed is not None, "it was drawn"
        await self._send(schemas.ResponseCreated(response_id=name, seed=form.seed))
        self._told = schemas.ResponseTold(
            id=name, status="cancelled", seed=form.seed, choices=[], first_audio_seconds=None,
            warnings=list(self._notices) if event.after == "prompt" else None,
        )  # fmt: skip  # until it is more
        self._response = asyncio.create_task(self._respond(self._told, asked))

    async def _respond(self, done: schemas.ResponseTold, asked: ContinueRequest) -> None:
        """Sends a response while it is made, and what there is to tell at its end. Raises Stalled."""
        name = done.id
        try:
            async with aclosing(self._engine.stream(asked)) as events:
                async for event in events:
                    if isinstance(event, AudioChunk):
                        await self._send(self._delta(name, event))
                        if done.first_audio_seconds is None:
                            done.first_audio_seconds = time.monotonic() - asked.arrived
                            self._socket.app.state.metrics.first_sent_seconds.observe(done.first_audio_seconds)
                    elif isinstance(event, GenerationResult):
                        self._keep(name, event)
                        self._finish(done, event)
                    else:
                        assert isinstance(event, PrefillDone), event
        except (Stalled, WebSocketDisconnect):
            raise
        except Exception as error:
            await self._tell_error(as_service_error(self._socket, error))
            done.status = "failed"
        await self._send(schemas.ResponseDone(response=done))

    def _keep(self, name: str, result: GenerationResult) -> None:
        if result.ends:
            self._end = result.ends[0]
            kept = self._kept(list(result.ends), np.zeros(0, np.float32))
            self._store.keep("continuation", self._owner, name, kept, self._client)

    def _kept(self, ends: list[ReadPrompt], samples: Samples, notices: tuple[Notice, ...] = ()) -> Kept:
        return Kept(ends, samples, notices, self._model.name, self._model.identity)

    @staticmethod
    def _delta(name: str, chunk: AudioChunk) -> schemas.AudioDelta:
        return schemas.AudioDelta(
            response_id=name,
            index=chunk.choice,
            delta=base64.b64encode(PcmEncoder().feed(limit(chunk.samples))).decode(),
            tokens=chunk.tokens.tolist(),
            logprobs=chunk.logprobs.tolist(),
        )

    @staticmethod
    def _finish(done: schemas.ResponseTold, result: GenerationResult) -> None:
        done.status = "completed" if result.finish_reason == "length" else "incomplete"
        made = zip(result.tokens, result.logprobs, result.finish_reasons, strict=True)
        done.choices = [
            schemas.ChoiceTold(
                index=index,
                tokens=len(tokens),
                seconds=len(tokens) / FRAME_RATE_HZ,
                nll=-float(logprobs.mean(dtype=np.float64)) if len(logprobs) else None,
                finish_reason=reason,
            )
            for index, (tokens, logprobs, reason) in enumerate(made)
        ]

    async def _cancel(self) -> None:
        """Stops the response; one that is over already has been told of."""
        running = self._response
        if running is not None and not running.done():
            running.cancel()
            await asyncio.wait([running])
            if running.cancelled():
                assert self._told is not None, "a response is under way"
                await self._send(schemas.ResponseDone(response=self._told))
                self._response = None

    async def _tell_session(self, kind: str) -> None:
        body = schemas.SessionBody(
            id=f"sess-{self._socket.state.request_id}",
            model=self._model.name,
            input_audio_format=self._options.input_audio_format,
            sample_rate=self._options.sample_rate,
            frame_rate=FRAME_RATE_HZ,
            response=self._options.response,
        )
        await self._send(schemas.SessionTold.model_validate({"type": kind, "session": body}))

    async def _tell_error(self, error: ServiceError, event_id: str | None = None) -> None:
        body = ErrorBody(**error.body(self._socket.state.request_id))
        await self._send(schemas.ErrorTold(event_id=event_id, error=body))

    async def _send(self, event: BaseModel) -> None:
        """Hands an event to the socket; waits while its buffer is full. Raises Stalled."""
        async with self._sending:
            try:
                async with asyncio.timeout(self._settings.send_timeout_seconds):
                    await self._socket.send_text(event.model_dump_json())
            except TimeoutError:
                raise Stalled from None
