"""Uploads, all that a route need know of them: `received` gives a form and its files, `decoded` a file's samples.

How a body is parsed (`app.server.multipart`) and which process decodes a file (`app.server.decoders`) is behind these.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
from fastapi import Request
from starlette.datastructures import UploadFile

from app.audio.containers import is_pcm
from app.audio.decode import DecodedAudio, decode
from app.errors import DeadlinePassed, FileTooLarge, InvalidParameter
from app.server.bodies import Bodies
from app.server.logs import add
from app.server.multipart import parsed, too_many
from app.server.schemas import Form, checked
from app.server.tracing import mark
from app.settings import Settings
from model.constants import SAMPLE_RATE_HZ

F = TypeVar("F", bound=Form)


@dataclass(frozen=True)
class Upload(Generic[F]):
    """The fields and the files of a request."""

    form: F
    files: list[UploadFile]


@asynccontextmanager
async def received(
    request: Request, form: type[F], max_files: int, *, file_needed: bool = True
) -> AsyncIterator[Upload[F]]:
    """The request's form, checked, and its files; these are closed, and gone, at the end.

    Raises MalformedForm, InvalidParameter, ModelNotFound, FileTooLarge, Overloaded, StorageFull, UploadTimeout or
    ClientGone.
    """
    bodies: Bodies = request.app.state.bodies
    with bodies.one() as body:
        data = await parsed(request, request.app.state.settings, max_files, body)
        try:
            files: list[UploadFile] = []
            fields: dict[str, str] = {}
            for name, value in data.multi_items():
                if isinstance(value, UploadFile):
                    if name != "file":
                        raise InvalidParameter(f"{name}: files go into the field file"[:300], name[:64])
                    files.append(value)
                elif name == "file":
                    raise InvalidParameter("file: must be a file part, with a filename", "file")
                elif name in fields:
                    raise InvalidParameter(f"{name}: given twice"[:300], name[:64])
                else:
                    fields[name] = value
            if file_needed and not files:
                raise InvalidParameter("file: is missing", "file")
            if len(files) > max_files:
                raise too_many(max_files)
            upload = Upload(checked(form, fields), files)
            request.app.state.models.find(upload.form.model)
            yield upload
        finally:
            await data.close()


def deadline(request: Request, settings: Settings, wanted: float | None) -> tuple[float, float]:
    """When the request arrived and when its time is up, `time.monotonic` seconds."""
    arrived: float = request.state.arrived
    return arrived, arrived + min(wanted or settings.timeout_seconds, settings.timeout_seconds)


@asynccontextmanager
async def turn(limiter: anyio.CapacityLimiter, until: float) -> AsyncIterator[None]:
    """A token of the limiter for an upload. Raises DeadlinePassed when none is free by ``until``."""
    try:
        async with asyncio.timeout(max(until - time.monotonic(), 0.0)):
            await limiter.acquire()
    except TimeoutError:
        raise DeadlinePassed("the file waited to be decoded until the request's time was up") from None
    try:
        yield
    finally:
        limiter.release()


async def decoded(
    request: Request,
    file: UploadFile,
    until: float,
    max_seconds: float,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> DecodedAudio:
    """An upload decoded: `app.audio.decode.decode` until ``until``, by a process that a thread waits for.

    Raises what that raises.

    A cancelled caller stops the thread at its next block and waits for that: the thread reads the upload's file, which
    the caller closes. (anyio's own shield does not hold against the cancelling of an asyncio task.)
    """
    state = request.app.state
    most = state.settings.max_compressed_mib
    cancelled = threading.Event()

    def run() -> DecodedAudio:
        if (file.size or 0) > most * 2**20 and not is_pcm(file.file):
            raise FileTooLarge(f"what is not WAV, AIFF, AU, CAF or W64 may hold {most:g} MiB: send Opus", "file")
        with state.metrics.audio_decode_seconds.time():
            if state.processes is not None:
                audio: DecodedAudio = state.processes.decode(
                    file.file, max_seconds, start_seconds, end_seconds, until, cancelled.is_set
                )
                return audio
            return decode(
                file.file, max_seconds, start_seconds, end_seconds,
                stop=lambda: cancelled.is_set() or time.monotonic() > until,
            )  # fmt: skip

    async with turn(state.decoders, until):
        thread = asyncio.get_running_loop().run_in_executor(None, run)
        began = time.monotonic()
        try:
            audio = await asyncio.shield(thread)
            add(request, audio_seconds=len(audio.samples) / SAMPLE_RATE_HZ)
            return audio
        finally:
            add(request, decode_seconds=time.monotonic() - began)
            mark(request, "decode", began)
            cancelled.set()
            while not thread.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([thread])
            thread.exception()  # seen
