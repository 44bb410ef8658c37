"""/v1/audio/prompts: clips that are read once, for any number of continuations."""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Depends, Request

from app.prompts import service
from app.prompts.schemas import PromptDeleted, PromptForm, PromptResponse
from app.server import uploads
from app.server.auth import require_key
from app.server.disconnect import unless_gone
from app.server.limits import client_of, limited
from app.server.schemas import OF_UPLOADS, failures, multipart

router = APIRouter(dependencies=[Depends(require_key)], tags=["prompts"])
OF_IDS = failures(401, 404, 422)  # 422 cannot be, but FastAPI would tell its own of it otherwise


@router.post(
    "/v1/audio/prompts",
    dependencies=[Depends(limited)],
    responses=failures(*OF_UPLOADS),
    openapi_extra=multipart(PromptForm),
    response_model_exclude_none=True,
)
async def post_prompt(request: Request) -> PromptResponse:
    """Read a clip and keep it for a while: its id is the ``prompt`` of any number of /continue requests."""
    state = request.app.state
    async with AsyncExitStack() as permit:
        permit.enter_context(state.limits.one(client_of(request)))
        permit.enter_context(state.engine.acquire(state.bodies.make_room))
        async with uploads.received(request, PromptForm, max_files=1) as upload:
            model = await service.model_of(request, upload.form, None, permit)
            return await unless_gone(request, service.kept(request, upload, model), "prefill")


@router.get("/v1/audio/prompts/{prompt_id}", responses=OF_IDS, response_model_exclude_none=True)
async def get_prompt(request: Request, prompt_id: str) -> PromptResponse:
    """A prompt that is kept, which is a use: it is kept for as long again."""
    held = request.app.state.prompts.use("prompt", service.owner_of(request), prompt_id)
    return service.told(request, prompt_id, held)


@router.delete("/v1/audio/prompts/{prompt_id}", responses=OF_IDS)
async def delete_prompt(request: Request, prompt_id: str) -> PromptDeleted:
    """Forget a prompt, or what is kept of a continuation, at once."""
    request.app.state.prompts.drop(service.owner_of(request), prompt_id)
    return PromptDeleted(id=prompt_id)
