"""/v1/admin/models: loading and unloading without a restart. These routes are there only where there are `admin_keys`.

A model is named, never a path: its bundle lies in the folders of the settings.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import InvalidParameter, SeveralProcesses
from app.models.registry import Models, Served
from app.server.auth import require_admin_key
from app.server.schemas import ErrorResponse
from app.system.models import ModelBody, told

MOST_BYTES = 4096  # of a body that names a model
WAIT_SECONDS = 0.0
OTHERS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "model_not_found"},
    409: {"model": ErrorResponse, "description": "model_in_use; several_processes"},
}
router = APIRouter(tags=["admin"], dependencies=[Depends(require_admin_key)])


class LoadRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=200, description="the name of a bundle in the server's folders")


class ModelState(BaseModel):
    """A model as its operator sees it."""

    id: str
    object: Literal["admin.model"] = "admin.model"
    first: bool = Field(description="it is what requests get that name no model, and stays loaded")
    loaded: bool
    loading: bool
    requests: int = Field(description="inside that are for it")
    bytes: int = Field(description="memory of its weights and of all its slots, while it is loaded")


class ModelStates(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelState]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["admin.model.deleted"] = "admin.model.deleted"
    deleted: Literal[True] = True


def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


def alone(request: Request) -> None:
    """What changes a process's models is for servers of one. Raises SeveralProcesses."""
    count = request.app.state.settings.processes
    if count > 1:
        message = (
            f"this server has {count} processes, and a model would be loaded or unloaded in one of them: "
            "restart it with the bundles that it shall serve"
        )
        raise SeveralProcesses(message, "model")


def _state(served: Served, first: Served) -> ModelState:
    return ModelState(
        id=served.name,
        first=served is first,
        loaded=served.model is not None,
        loading=served.loading is not None,
        requests=served.uses,
        bytes=served.nbytes,
    )


@router.get("/v1/admin/models")
async def states(request: Request) -> ModelStates:
    """What is served, loaded or not; of several processes each tells of its own."""
    models = _models(request)
    return ModelStates(data=[_state(served, models.first) for served in models.all()])


@router.post(
    "/v1/admin/models",
    dependencies=[Depends(alone)],
    responses={**OTHERS, 200: {"model": ModelBody, "description": "it was loaded"}},
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": LoadRequest.model_json_schema()}},
        }
    },
)
async def load(request: Request, response: Response) -> ModelBody:
    """Load a bundle, which is served from then on. The folders are looked through anew."""
    served, new = await _models(request).load((await _asked(request)).model)
    response.status_code = 201 if new else 200
    return told(served)


async def _asked(request: Request) -> LoadRequest:
    """The body, of which no more is read than it may have. Raises InvalidParameter."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise InvalidParameter(f"a body has {MOST_BYTES} bytes at most")
    try:
        return LoadRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidParameter(f"model: {first['msg']}"[:300], "model") from None


@router.delete("/v1/admin/models/{model}", dependencies=[Depends(alone)], responses=OTHERS)
async def unload(
    request: Request,
    model: str,
    wait_seconds: Annotated[float, Field(ge=0, le=300, description="for requests inside to end")] = WAIT_SECONDS,
) -> ModelDeleted:
    """Serve a bundle no longer. What is kept of its prompts and continuations is forgotten.

    New requests for it are refused; when some that are inside have not ended in time, it stays (409).
    """
    await _models(request).unload(model, wait_seconds)
    request.app.state.prompts.drop_of(model)
    return ModelDeleted(id=model)
