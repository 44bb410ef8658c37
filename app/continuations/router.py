"""POST /continue."""

import time
from contextlib import AsyncExitStack

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from app.audio.formats import MEDIA_TYPES
from app.continuations.schemas import ContinueForm, ContinueResponse
from app.continuations.service import continued, log_result, ordered, response
from app.continuations.stream import StreamedResponse, opened
from app.server import multipart as forms
from app.server.auth import require_key
from app.server.disconnect import unless_gone
from app.server.limits import client_of, limited
from app.server.responses import WholeResponse
from app.server.schemas import multipart
from app.server.tracing import mark

router = APIRouter(dependencies=[Depends(require_key), Depends(limited)], tags=["continue"])
AUDIO = {"schema": {"type": "string", "format": "binary"}}
EVENTS = {
    "schema": {"type": "string", "description": "stream=true: audio.delta, ..., audio.done; or audio.error"},
    "example": 'event: audio.delta\ndata: {"index": 0, "audio": "AAD//w==", "tokens": [17], "logprobs": [-3.1]}\n\n',
}
ANSWERS = {
    "description": "The continuation: JSON, or bare audio",
    "model": ContinueResponse,
    "content": dict.fromkeys(MEDIA_TYPES.values(), AUDIO) | {"text/event-stream": EVENTS},
}


@router.post("/continue", responses={200: ANSWERS}, openapi_extra=multipart(ContinueForm, many=False))
@router.post("/v1/audio/continuations", include_in_schema=False)
async def post_continue(request: Request) -> Response:
    """Continue a clip: the decoded continuation and the log-likelihood of each of its tokens."""
    state = request.app.state
    async with AsyncExitStack() as place:
        place.enter_context(state.limits.one(client_of(request)))
        place.enter_context(state.engine.reserve())
        async with forms.read(request, ContinueForm, state.settings, max_files=1) as upload:
            order = await unless_gone(request, ordered(request, upload), "decode")
        if order.form.stream:
            return StreamedResponse(request, await unless_gone(request, opened(request, order, place), order.stage))
        made = await unless_gone(request, continued(request, order), order.stage)
        log_result(request, order, made, made.first_audio_seconds)
        began = time.monotonic()
        answer = await to_thread.run_sync(response, request, order, made, limiter=state.encoders)
        mark(request, "encode", began)
        return WholeResponse(request, answer, place)
