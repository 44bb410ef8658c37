"""Form and answer of POST /score, as docs/api.md has them. Field names, units and ranges are a contract."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.audio.notices import Notice
from app.scores.reports import REPORTS, Format, Part
from app.server.schemas import MAX_CLIP_SECONDS, WARNINGS, ErrorBody, Form

MAX_ALTERNATIVES = 500_000  # of one answer of the server's: 15 MB of JSON


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
    window_step: Annotated[
        float | None,
        Field(
            gt=0, le=MAX_CLIP_SECONDS,
            description="score windows all along the clip, one every so many seconds, each of window_seconds (default: "
            "of window_step), the first at window_start",
        ),
    ] = None  # fmt: skip
    normalise_by: Annotated[
        Literal["unigram", "alone"] | None,
        Field(
            description="also report the window's nll less that of the same tokens without the clip's past: by the "
            "bundle's unigram counts, or by the model when it reads the window alone"
        ),
    ] = None
    detail: Annotated[
        Literal["summary", "tokens", "full"],
        Field(description="tokens adds every token's logprobs and codes; full adds entropy and rank to these"),
    ] = "summary"
    top_logprobs: Annotated[
        int,
        Field(ge=0, le=20, description="with detail=tokens or full: so many of the likeliest tokens of each position"),
    ] = 0
    response_format: Annotated[
        Format,
        Field(
            description="json; jsonl: a line a clip; csv: a row a clip; of one clip: audacity (a label track), textgrid"
            " (Praat), png (a picture of the first clip); zerospeech: a line a clip, name and log-likelihood"
        ),
    ] = "json"
    timeout_seconds: Annotated[float | None, Field(gt=0, description="after which the request ends with 504")] = None

    @model_validator(mode="after")
    def _check(self) -> "ScoreForm":
        if self.window_start is not None and self.window_start < self.prompt_seconds:
            raise ValueError("window_start: must not lie before prompt_seconds, which is not scored")
        if self.window_step is not None and self.normalise_by == "alone":
            raise ValueError("normalise_by: with window_step it is unigram only; alone would read each window anew")
        if self.top_logprobs and self.detail == "summary":
            raise ValueError("top_logprobs: needs detail=tokens or full")
        for field, part in self._asked():
            if part not in REPORTS[self.response_format].takes:
                raise ValueError(f"{field}: {self.response_format} has no room for it; json and jsonl have")
        return self

    def _asked(self) -> list[tuple[str, Part]]:
        """What is asked for beside a summary, and the field that asks."""
        asked: list[tuple[str, Part]] = []
        if self.window_step is not None:
            asked.append(("window_step", "scan"))
        if self.top_logprobs:
            asked.append(("top_logprobs", "alternatives"))
        if self.detail != "summary":
            asked.append(("detail", self.detail))
        return asked

    @property
    def positions(self) -> bool:
        """Whether an answer has every token's figures."""
        return self.detail != "summary" or REPORTS[self.response_format].positions

    @property
    def windowed(self) -> bool:
        """Whether a localised or a normalised score is asked for."""
        fields = (self.window_start, self.window_seconds, self.window_step, self.normalise_by)
        return any(field is not None for field in fields)

    def as_json(self) -> "ScoreForm":
        """The form of a JSON answer from which the report can be written."""
        detail = "tokens" if self.positions and self.detail == "summary" else self.detail
        return self.model_copy(update={"response_format": "json", "detail": detail})


class WindowResult(BaseModel):
    """Likelihood of a part of a clip, given all of the clip before it (arXiv 2601.06329)."""

    start: float = Field(description="seconds from the clip's start")
    seconds: float
    tokens: int
    log_likelihood: float = Field(description="sum over the window's tokens, nats")
    nll: float = Field(description="mean over the window's tokens, nats a token")
    perplexity: float
    normalised_by: Literal["unigram", "alone"] | None = None
    baseline_nll: float | None = Field(None, description="of the same tokens without the clip's past")
    normalised_nll: float | None = Field(None, description="nll - baseline_nll: lower = better explained by the past")


class ScanResult(BaseModel):
    """Localised scores all along a clip: window i begins at start + i * step_seconds. All lie within the clip."""

    start: float = Field(description="of the first window, seconds from the clip's start")
    window_seconds: float
    step_seconds: float
    nll: list[float] = Field(description="mean over a window's tokens, nats a token; one a window")
    normalised_by: Literal["unigram"] | None = None
    baseline_nll: list[float] | None = None
    normalised_nll: list[float] | None = None


class ScoreResult(BaseModel):
    filename: str
    seconds: float
    tokens: int
    log_likelihood: float = Field(description="sum over the tokens, nats")
    nll: float = Field(description="minus the mean over the tokens, nats a token")
    perplexity: float = Field(description="exp(nll)")
    bits_per_second: float
    accuracy: float = Field(description="share of the tokens that were the likeliest")
    window: WindowResult | None = Field(
        None, description="only with window_start, window_seconds or normalise_by, and without window_step"
    )
    scan: ScanResult | None = Field(None, description="only with window_step")
    logprobs: list[float] | None = Field(None, description="of each token, natural logarithm")
    codes: list[int] | None = Field(None, description="the tokens")
    entropy: list[float] | None = Field(None, description="of each position's distribution, nats")
    rank: list[int] | None = Field(None, description="of each token in its distribution: 1 = the likeliest")
    top_codes: list[list[int]] | None = Field(None, description="of each position, the likeliest tokens")
    top_logprobs: list[list[float]] | None = Field(None, description="of these, natural logarithms")
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
                    "filename": "a.flac", "seconds": 6.34, "tokens": 475, "log_likelihood": -1995.0, "nll": 4.2,
                    "perplexity": 66.7,
                    "bits_per_second": 454.4, "accuracy": 0.15,
                    "window": {
                        "start": 3.0, "seconds": 1.0, "tokens": 75, "log_likelihood": -292.5, "nll": 3.9,
                        "perplexity": 49.4,
                        "normalised_by": "alone", "baseline_nll": 4.4, "normalised_nll": -0.5,
                    },
                }],
            }
        }
    )  # fmt: skip
    object: Literal["audio.score"] = "audio.score"
    model: str
    results: list[ScoreResult | ScoreFailure]
