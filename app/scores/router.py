"""POST /score."""

import time
from contextlib import AsyncExitStack

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from app.scores.schemas import ScoreForm, ScoreResponse
from app.scores.service import response, score_audio
from app.server import uploads
from app.server.auth import require_key
from app.server.disconnect import unless_gone
from app.server.limits import client_of, limited
from app.server.responses import WholeResponse
from app.server.schemas import multipart
from app.server.tracing import mark

router = APIRouter(dependencies=[Depends(require_key), Depends(limited)], tags=["score"])


@router.post("/score", response_model=ScoreResponse, openapi_extra=multipart(ScoreForm, many=True))
@router.post("/v1/audio/scores", include_in_schema=False)
async def post_score(request: Request) -> Response:
    """Negative log-likelihood and perplexity of clips; ``detail=tokens`` adds every token's.

    A window (``window_start``, ``window_seconds``) is scored by itself as well, given all of the clip before it;
    ``normalise_by`` tells how much of its likelihood is owed to that past.
    """
    state = request.app.state
    async with AsyncExitStack() as permit:
        permit.enter_context(state.limits.one(client_of(request)))
        permit.enter_context(state.engine.acquire())
        async with uploads.received(request, ScoreForm, state.settings.max_files) as upload:
            scored = await unless_gone(request, score_audio(request, upload), "score")
        began = time.monotonic()
        answer = await to_thread.run_sync(response, scored, limiter=state.encoders)
        mark(request, "encode", began)
        return WholeResponse(request, answer, permit)
