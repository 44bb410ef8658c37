"""What is served."""

from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from app.errors import NotReady
from app.models.registry import Served
from app.server.auth import require_key
from app.server.schemas import ErrorResponse, failures

router = APIRouter(tags=["server"])


class ModelBody(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the bundle came to this machine, seconds since 1970; 0 = not known")
    owned_by: str = "whisper-gpt"
    preset: str
    parameters: int = Field(description="of the language model without its depth decoder")
    fine_parameters: int = Field(description="of the depth decoder")
    codec: dict[str, Any]
    hashes: dict[str, str]
    licence: str
    window_seconds: float
    sample_rate: int
    frame_rate: int
    batch_invariant: bool = Field(
        description="a request with a seed has the same bits alone and beside others: tested at the start of the server"
    )
    loaded: bool = Field(description="its weights are in memory: a request for it does not wait for them")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


@router.get("/v1/models", dependencies=[Depends(require_key)], responses=failures(401))
async def models(request: Request) -> ModelList:
    """The bundles that are served, the one first that requests get which name none."""
    return ModelList(data=[told(one) for one in request.app.state.models.all() if one.facts is not None])


@router.get(
    "/v1/models/{model}",
    dependencies=[Depends(require_key)],
    responses=failures(401, 422) | {404: {"model": ErrorResponse, "description": "model_not_found"}},
)
async def model(request: Request, model: str) -> ModelBody:
    """The same by its name."""
    return told(request.app.state.models.find(model))


def told(served: Served) -> ModelBody:
    """What there is to tell of a bundle. One that is being loaded for the first time is not there yet."""
    if served.facts is None:
        raise NotReady(f"the model {served.name!r} is being loaded"[:300], "model")
    return ModelBody(**served.facts, loaded=served.model is not None)
