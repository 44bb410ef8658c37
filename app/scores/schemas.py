"""Form and answer of POST /score, as docs/api.md has them. Field names, units and ranges are a contract."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.audio.notices import Notice
from app.server.schemas import MAX_CLIP_SECONDS, WARNINGS, ErrorBody, Form

LATER = {
    "csv": "the format is json",
    "png": "the format is json",
}


def _supported(value: str) -> str:
    if value in LATER:
        raise ValueError(f"{value} is not offered by this version: {LATER[value]}")
    return value


class ScoreForm(Form):
    """Fields of POST /score."""

    model_config = ConfigDict(json_schema_extra={"example": {"detail": "tokens", "prompt_seconds": 1}})

    prompt_seconds: Annotated[
        float, Field(ge=0, le=MAX_CLIP_SECONDS, description="so much at the beginning is context, and not scored")
    ] = 0.0
    window_start: Annotated[
        float | None,
        Field(
            ge=0, le=MAX_CLIP_SECONDS,
            description="localised score: where its window starts, seconds from the clip's start, rounded up to whole "
            "frames; not before prompt_seconds, which is also the default",
        ),
    ] = None  # fmt: skip
    window_seconds: Annotated[
        float | None,
        Field(
            gt=0, le=MAX_CLIP_SECONDS, description="localised score: the window's length; default: to the clip's end"
        ),
    ] = None
    normalise_by: Annotated[
        Literal["unigram", "alone"] | None,
        Field(
            description="also report the window's nll less that of the same tokens without the clip's past: by the "
            "bundle's unigram counts, or by the model when it reads the window alone"
        ),
    ] = None
    detail: Annotated[Literal["summary", "tokens"], Field(description="tokens adds logprobs and codes")] = "summary"
    response_format: Annotated[
        Literal["json", "csv", "png"],
        AfterValidator(_supported),
        Field(description="json (csv and png: not in this version)"),
    ] = "json"
    timeout_seconds: Annotated[float | None, Field(gt=0, description="after which the request ends with 504")] = None

    @model_validator(mode="after")
    def _check(self) -> "ScoreForm":
        if self.window_start is not None and self.window_start < self.prompt_seconds:
            raise ValueError("window_start: must not lie before prompt_seconds, which is not scored")
        return self

    @property
    def windowed(self) -> bool:
        """Whether a localised or a normalised score is asked for."""
        return any(field is not None for field in (self.window_start, self.window_seconds, self.normalise_by))


class WindowResult(BaseModel):
    """Likelihood of a part of a clip, given all of the clip before it (arXiv 2601.06329)."""

    start: float = Field(description="seconds from the clip's start")
    seconds: float
    tokens: int
    nll: float = Field(description="mean over the window's tokens, nats a token")
    perplexity: float
    normalised_by: Literal["unigram", "alone"] | None = None
    baseline_nll: float | None = Field(None, description="of the same tokens without the clip's past")
    normalised_nll: float | None = Field(None, description="nll - baseline_nll: lower = better explained by the past")


class ScoreResult(BaseModel):
    filename: str
    seconds: float
    tokens: int
    nll: float
    perplexity: float
    bits_per_second: float
    accuracy: float
    window: WindowResult | None = Field(None, description="only with window_start, window_seconds or normalise_by")
    logprobs: list[float] | None = None
    codes: list[int] | None = None
    warnings: list[Notice] | None = WARNINGS


class ScoreFailure(BaseModel):
    filename: str
    error: ErrorBody


class ScoreResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "object": "audio.score", "model": "default",
                "results": [{
                    "filename": "a.flac", "seconds": 6.34, "tokens": 475, "nll": 4.2, "perplexity": 66.7,
                    "bits_per_second": 454.4, "accuracy": 0.15,
                    "window": {
                        "start": 3.0, "seconds": 1.0, "tokens": 75, "nll": 3.9, "perplexity": 49.4,
                        "normalised_by": "alone", "baseline_nll": 4.4, "normalised_nll": -0.5,
                    },
                }],
            }
        }
    )  # fmt: skip
    object: Literal["audio.score"] = "audio.score"
    model: str
    results: list[ScoreResult | ScoreFailure]
