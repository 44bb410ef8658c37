"""From an upload to a prompt that is kept, and what kept prompts are told with."""

import math
import time
from contextlib import AsyncExitStack
from typing import Protocol

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import HTTPConnection

from app.audio.decode import DecodedAudio
from app.engine.requests import Model, PromptRequest, ReadPrompt
from app.errors import AudioTooLong, AudioTooShort, InvalidParameter, PromptNotFound, ServiceError, StorageFull
from app.prompts.schemas import PromptForm, PromptResponse
from app.prompts.store import Kept, Store, new_id
from app.server import uploads
from app.server.disconnect import unless_gone
from app.server.limits import client_of
from app.server.tracing import follow
from app.settings import Settings
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from model.inference.scoring import MIN_FRAMES, TooShortError


def owner_of(request: HTTPConnection) -> str:
    """Whose prompts a request may use: the name of its key; without keys all are everyone's who knows their ids."""
    return getattr(request.state, "key", None) or ""


def too_short() -> ServiceError:
    """What the model's TooShortError is called outside."""
    hundredths = math.ceil(100 * MIN_FRAMES / FRAME_RATE_HZ)  # rounded down, it would ask for what is still too short
    return AudioTooShort(f"a prompt needs {hundredths / 100:.2f} s or more", "file")


async def decoded(request: Request, file: UploadFile, until: float, start: float, end: float | None) -> DecodedAudio:
    """A file's part from ``start`` to ``end`` seconds, to be a prompt. Raises ServiceError."""
    settings: Settings = request.app.state.settings
    if start > settings.max_score_seconds:  # what is skipped is decoded, too
        raise AudioTooLong(f"prompt_start: at most {settings.max_score_seconds:g} s into a file", "prompt_start")
    return await uploads.decoded(request, file, until, settings.max_prompt_seconds, start, end)


class Timed(Protocol):
    """What the forms of all routes that compute have."""

    @property
    def model(self) -> str | None: ...
    @property
    def timeout_seconds(self) -> float | None: ...


async def model_of(request: Request, form: Timed, held: Kept | None, permit: AsyncExitStack) -> Model:
    """The model that a form names; without a name the one that made what it goes on from, or the first.

    It stays loaded until the ``permit`` is given back. Raises what `Models.use` raises; ClientGone; InvalidParameter
    when another model made what is held, PromptNotFound when other weights of its name did.
    """
    if held is not None and form.model not in (None, held.model):
        raise InvalidParameter(f"model: {held.model!r} made this, and no other model can go on from it"[:300], "model")
    _, until = uploads.deadline(request, request.app.state.settings, form.timeout_seconds)
    use = request.app.state.models.use(form.model if held is None else held.model, until)
    model: Model = await unless_gone(request, permit.enter_async_context(use), "load")
    if held is not None and held.identity != model.identity:
        raise PromptNotFound(f"the model {held.model!r} has other weights now than those that made this"[:300])
    return model


async def kept(request: Request, upload: uploads.Upload[PromptForm], model: Model) -> PromptResponse:
    """Decodes a prompt, has it read, and keeps it. Raises ServiceError."""
    state, form = request.app.state, upload.form
    arrived, until = uploads.deadline(request, state.settings, form.timeout_seconds)
    audio = await decoded(request, upload.files[0], until, form.prompt_start, form.prompt_end)
    await state.limits.audio(client_of(request), len(audio.samples) / SAMPLE_RATE_HZ)
    engine_request = PromptRequest(arrived, until, audio.samples, model=model)
    follow(request, engine_request)
    try:
        read: ReadPrompt = await state.engine.submit(engine_request)
    except TooShortError as error:
        raise too_short() from error
    name = new_id("prompt")
    store: Store = state.prompts
    # A copy: the samples lie in memory that a decoder shares, each piece of which holds a descriptor.
    held = Kept([read], audio.samples.copy(), audio.warnings, model.name, model.identity)
    if not store.keep("prompt", owner_of(request), name, held, client_of(request)):
        most = store.most_bytes / 2**20
        raise StorageFull(f"this prompt takes {held.nbytes / 2**20:.1f} MiB, and the server keeps {most:g} MiB of them")
    return told(request, name, held)


def told(request: Request, name: str, held: Kept) -> PromptResponse:
    """What there is to tell of a prompt that is kept."""
    (read,), state = held.ends, request.app.state
    return PromptResponse(
        id=name,
        model=held.model,
        seconds=len(read.logprobs) / FRAME_RATE_HZ,
        tokens=len(read.logprobs),
        nll=-float(read.logprobs.mean(dtype="float64")),
        expires_at=math.floor(time.time() + state.prompts.left_seconds(held)),
        warnings=list(held.warnings) or None,
    )
