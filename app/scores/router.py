"""POST /score."""

import time
from contextlib import AsyncExitStack
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from app.prompts import service as prompts
from app.scores.reports import REPORTS
from app.scores.schemas import ScoreForm, ScoreResponse
from app.scores.service import response, score_audio
from app.server import uploads
from app.server.auth import require_key
from app.server.disconnect import unless_gone
from app.server.limits import client_of, limited
from app.server.responses import WholeResponse
from app.server.schemas import OF_UPLOADS, ErrorResponse, failures, multipart
from app.server.tracing import mark

router = APIRouter(dependencies=[Depends(require_key), Depends(limited)], tags=["score"])


OTHER_TYPES = sorted({report.media_type.partition(";")[0] for report in REPORTS.values()} - {"application/json"})
CONTENT: dict[int | str, dict[str, Any]] = failures(*OF_UPLOADS) | {
    200: {"content": {name: {} for name in OTHER_TYPES}},
    404: {"model": ErrorResponse, "description": "model_not_found"},
}


@router.post("/score", response_model=ScoreResponse, responses=CONTENT, openapi_extra=multipart(ScoreForm, many=True))
@router.post("/v1/audio/scores", include_in_schema=False)
async def post_score(request: Request) -> Response:
    """Negative log-likelihood and perplexity of clips; ``detail`` and ``top_logprobs`` add every token's figures.

    A window (``window_start``, ``window_seconds``) is scored by itself as well, given all of the clip before it;
    ``normalise_by`` tells how much of its likelihood is owed to that past. ``window_step`` does so all along the clip.
    ``response_format`` writes tables and label tracks.
    """
    state = request.app.state
    async with AsyncExitStack() as permit:
        permit.enter_context(state.limits.one(client_of(request)))
        permit.enter_context(state.engine.acquire(state.bodies.make_room))
        async with uploads.received(request, ScoreForm, state.settings.max_files) as upload:
            model = await prompts.model_of(request, upload.form, None, permit)
            scored = await unless_gone(request, score_audio(request, upload, model), "score")
        began = time.monotonic()
        answer = await to_thread.run_sync(response, scored, limiter=state.encoders)
        mark(request, "encode", began)
        return WholeResponse(request, answer, permit)
