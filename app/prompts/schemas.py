"""The form and the answers of prompts that are kept. Field names, units and ranges are a contract (docs/api.md)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.audio.notices import Notice
from app.server.schemas import MAX_CLIP_SECONDS, WARNINGS, Form

PROMPT_START = Field(ge=0, le=MAX_CLIP_SECONDS, description="where the prompt begins in the file, seconds")
PROMPT_END = Field(
    gt=0, le=MAX_CLIP_SECONDS, description="where the prompt ends in the file, seconds; default: the file's end"
)


class PromptForm(Form):
    """Fields of POST /v1/audio/prompts."""

    prompt_start: Annotated[float, PROMPT_START] = 0.0
    prompt_end: Annotated[float | None, PROMPT_END] = None
    timeout_seconds: Annotated[float | None, Field(gt=0, description="after which the request ends with 504")] = None

    @model_validator(mode="after")
    def _check(self) -> "PromptForm":
        if self.prompt_end is not None and self.prompt_end <= self.prompt_start:
            raise ValueError("prompt_end: must lie after prompt_start")
        return self


class PromptResponse(BaseModel):
    """A prompt that is kept."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "prompt-mX2v", "object": "audio.prompt", "model": "default", "seconds": 6.33, "tokens": 475,
                "nll": 4.2, "expires_at": 1790000600,
            }
        }
    )  # fmt: skip

    id: str
    object: Literal["audio.prompt"] = "audio.prompt"
    model: str
    seconds: float
    tokens: int
    nll: float = Field(description="nats a token")
    expires_at: int = Field(description="Unix time; each use puts it off. Sooner, if the server needs the room")
    warnings: list[Notice] | None = WARNINGS


class PromptDeleted(BaseModel):
    id: str
    object: Literal["audio.prompt.deleted"] = "audio.prompt.deleted"
    deleted: Literal[True] = True
