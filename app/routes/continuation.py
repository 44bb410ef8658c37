"""POST /continue."""

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from app import forms, work
from app.auth import require_key
from app.continuation import continue_audio, response
from app.encoders import MEDIA_TYPES
from app.schemas import ContinueForm, ContinueResponse, multipart

router = APIRouter(dependencies=[Depends(require_key)], tags=["continue"])
AUDIO = {"schema": {"type": "string", "format": "binary"}}
ANSWERS = {
    "description": "The continuation: JSON, or bare audio",
    "model": ContinueResponse,
    "content": dict.fromkeys(MEDIA_TYPES.values(), AUDIO),
}


@router.post("/continue", responses={200: ANSWERS}, openapi_extra=multipart(ContinueForm, many=False))
@router.post("/v1/audio/continuations", include_in_schema=False)
async def post_continue(request: Request) -> Response:
    """Continue a clip: the decoded continuation and the log-likelihood of each of its tokens."""
    state = request.app.state
    with state.engine.reserve():
        async with forms.read(request, ContinueForm, state.settings, max_files=2) as upload:
            answer = await work.unless_gone(request, continue_audio(request, upload), "generate")
        return await to_thread.run_sync(response, request, answer, limiter=state.encoders)
