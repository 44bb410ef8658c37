"""POST /continue: from the upload to a request for the engine, and from its result to an answer."""

import time
from contextlib import AsyncExitStack

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from app.audio.formats import MEDIA_TYPES
from app.continuations.answers import ContinuationRequest, finished, keep, whole_answer
from app.continuations.schemas import ContinueForm, ContinueResponse
from app.continuations.stream import StreamedResponse, opened
from app.engine.engine import Engine
from app.engine.requests import ContinueRequest, GenerationResult, Model
from app.errors import InvalidParameter
from app.prompts import service as prompts
from app.prompts.store import Kept
from app.server import uploads
from app.server.auth import require_key
from app.server.disconnect import unless_gone
from app.server.limits import client_of, limited
from app.server.logs import note
from app.server.responses import WholeResponse
from app.server.schemas import OF_UPLOADS, failures, multipart
from app.server.tracing import follow, mark
from app.settings import Settings
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds
from model.inference.scoring import TooShortError

router = APIRouter(dependencies=[Depends(require_key), Depends(limited)], tags=["continue"])
AUDIO = {"schema": {"type": "string", "format": "binary"}}
EVENTS = {
    "itemSchema": {  # of each event; a keyword of OpenAPI 3.2, which FastAPI uses as well
        "type": "object",
        "description": "stream=true: audio.delta, ..., audio.done; or audio.error",
        "required": ["event", "data"],
        "properties": {
            "event": {"type": "string", "enum": ["audio.delta", "audio.done", "audio.error"]},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "description": "audio.delta: index (of the choice), audio (base64 of s16le, 24 kHz, mono), tokens, "
                "logprobs; audio.done: the JSON answer without its choices' audio; audio.error: an ErrorResponse",
            },
        },
    },
    "example": 'event: audio.delta\ndata: {"index": 0, "audio": "AAD//w==", "tokens": [17], "logprobs": [-3.1]}\n\n',
}
ANSWERS = {
    "description": "The continuation: JSON, or bare audio",
    "model": ContinueResponse,
    "content": dict.fromkeys(MEDIA_TYPES.values(), AUDIO) | {"text/event-stream": EVENTS},
}


@router.post(
    "/continue",
    responses=failures(*OF_UPLOADS) | {200: ANSWERS},
    openapi_extra=multipart(ContinueForm, file_needed=False),
)
@router.post("/v1/audio/continuations", include_in_schema=False)
async def post_continue(request: Request) -> Response:
    """Continue a clip: the decoded continuation and the log-likelihood of each of its tokens."""
    state = request.app.state
    async with AsyncExitStack() as permit:
        permit.enter_context(state.limits.one(client_of(request)))
        permit.enter_context(state.engine.acquire(state.bodies.make_room))
        async with uploads.received(request, ContinueForm, max_files=1, file_needed=False) as upload:
            held = kept(request, upload)
            model = await prompts.model_of(request, upload.form, held, permit)
            asked = await unless_gone(request, checked(request, upload, held, model), "decode")
        if asked.form.stream:
            return StreamedResponse(request, await unless_gone(request, opened(request, asked, permit), asked.stage))
        result = await unless_gone(request, generated(request, asked), asked.stage)
        keep(request, asked, result)
        finished(request, asked, result, result.first_audio_seconds)
        began = time.monotonic()
        answer = await to_thread.run_sync(whole_answer, request, asked, result, limiter=state.encoders)
        mark(request, "encode", began)
        return WholeResponse(request, answer, permit)


async def checked(
    request: Request, upload: uploads.Upload[ContinueForm], held: Kept | None, model: Model
) -> ContinuationRequest:
    """Check the form against the settings and decode the prompt. Raises ServiceError."""
    settings: Settings = request.app.state.settings
    form = upload.form
    if form.seconds > settings.max_seconds:
        raise InvalidParameter(f"seconds: at most {settings.max_seconds:g}", "seconds")
    frames = frames_for_seconds(form.seconds)
    arrived, until = uploads.deadline(request, settings, form.timeout_seconds)
    if held is None:
        heard = await prompts.decoded(request, upload.files[0], until, form.prompt_start, form.prompt_end)
        prompt, warnings, read = heard.samples, heard.warnings, None
    else:
        prompt, warnings, read = held.samples, held.warnings, held.ends[form.continue_choice]
    note(request, n=form.n, streamed=form.stream, format=form.response_format)
    sent_seconds = 0.0 if held else len(prompt) / SAMPLE_RATE_HZ  # what is kept was counted before
    await request.app.state.limits.audio(client_of(request), sent_seconds + form.n * frames / FRAME_RATE_HZ)
    own = prompt if form.include_prompt else np.zeros(0, np.float32)
    keep = form.store and request.app.state.prompts.most_bytes > 0
    samples = None if held else prompt
    engine_request = ContinueRequest(arrived, until, samples, frames, form.sampling(), form.n, read, keep, model=model)
    follow(request, engine_request)
    return ContinuationRequest(form, engine_request, own, warnings, model.name, model.identity)


def kept(request: Request, upload: uploads.Upload[ContinueForm]) -> Kept | None:
    """What the form goes on from instead of a file. Raises PromptNotFound and InvalidParameter."""
    form, store, owner = upload.form, request.app.state.prompts, prompts.owner_of(request)
    name = form.continue_from if form.prompt is None else form.prompt
    if name is None and not upload.files:
        raise InvalidParameter("file: is missing", "file")
    if name is None:
        return None
    if upload.files:
        raise InvalidParameter("file: give one of file, prompt and continue_from", "file")
    held: Kept = store.use("continuation" if form.prompt is None else "prompt", owner, name)
    if form.continue_choice >= len(held.ends):
        raise InvalidParameter(f"continue_choice: the continuation had {len(held.ends)}, from 0 on", "continue_choice")
    return held


async def generated(request: Request, asked: ContinuationRequest) -> GenerationResult:
    """The whole continuation. Raises ServiceError."""
    engine: Engine = request.app.state.engine
    try:
        result: GenerationResult = await engine.submit(asked.engine_request)
        return result
    except TooShortError as error:
        raise prompts.too_short() from error
