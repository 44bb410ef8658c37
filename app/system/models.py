"""What is served."""

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from app.server.auth import require_key
from app.server.schemas import ErrorResponse, failures
from app.server.uploads import check_model
from model.checkpoint import CONFIG
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ

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


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


@router.get("/v1/models", dependencies=[Depends(require_key)], responses=failures(401))
async def models(request: Request) -> ModelList:
    """The bundle that is served."""
    return ModelList(data=[served(request)])


@router.get(
    "/v1/models/{model}",
    dependencies=[Depends(require_key)],
    responses=failures(401, 422) | {404: {"model": ErrorResponse, "description": "model_not_found"}},
)
async def model(request: Request, model: str) -> ModelBody:
    """The same by its name."""
    check_model(request, model)
    return served(request)


def created_at(folder: Path | None) -> int:
    """When a bundle's config was written here, which OpenAI's client wants to know; 0 where there is no file."""
    try:
        return int((folder / CONFIG).stat().st_mtime) if folder is not None else 0
    except OSError:  # moved away meanwhile: it is served from memory
        return 0


def served(request: Request) -> ModelBody:
    """What there is to tell of the bundle."""
    bundle = request.app.state.engine.bundle
    without, whole = bundle.lm.parameter_count(), bundle.lm.parameter_count(fine=True)
    return ModelBody(
        id=bundle.name,
        created=created_at(bundle.folder),
        preset=bundle.preset,
        parameters=without,
        fine_parameters=whole - without,
        codec=bundle.codec.config.to_dict(),
        hashes=bundle.hashes,
        licence=bundle.licence,
        window_seconds=bundle.lm.config.window / FRAME_RATE_HZ,
        sample_rate=SAMPLE_RATE_HZ,
        frame_rate=FRAME_RATE_HZ,
        batch_invariant=request.app.state.engine.batch_invariant,
    )
