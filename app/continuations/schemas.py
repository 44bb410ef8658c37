"""Requests and responses, as docs/api.md has them. Field names, units and ranges are a contract."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from model.inference.sampling import MAX_SEED

MAX_CLIP_SECONDS = 86_400.0  # no clip is longer than a day: the settings allow far less
LATER = {
    "csv": "the format is json",
    "png": "the format is json",
}


def _supported(value: str) -> str:
    if value in LATER:
        raise ValueError(f"{value} is not offered by this version: {LATER[value]}")
    return value


class Form(BaseModel):
    """Fields beside the file; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ContinueForm(Form):
    """Fields of POST /continue."""

    model_config = ConfigDict(json_schema_extra={"example": {"seconds": 3, "seed": 7, "top_p": 0.95}})

    seconds: Annotated[
        float, Field(ge=0.1, description="how much to generate; rounded up to whole frames of 1/75 s")
    ] = 5.0
    temperature: Annotated[float, Field(ge=0, le=2, description="0 = greedy")] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1, description="draw from the k most likely tokens; 0 = off")] = 0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="draw from the smallest set that reaches this probability")
    ] = 1.0
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="drawn by the server when absent; echoed")] = None
    n: Annotated[int, Field(ge=1, le=4, description="continuations of the same prompt")] = 1
    prompt_start: Annotated[
        float, Field(ge=0, le=MAX_CLIP_SECONDS, description="seconds into the file where the prompt begins")
    ] = 0.0
    prompt_end: Annotated[
        float | None, Field(gt=0, le=MAX_CLIP_SECONDS, description="seconds into the file where the prompt ends")
    ] = None
    include_prompt: Annotated[bool, Field(description="join the prompt's own samples to the continuation")] = False
    response_format: Annotated[
        Literal["json", "wav", "flac", "opus", "mp3", "pcm"], Field(description="json, or the bare audio")
    ] = "json"
    stream: Annotated[bool, Field(description="send it while it is made; json then comes as server-sent events")] = (
        False
    )
    timeout_seconds: Annotated[float | None, Field(gt=0, description="what is ready by then is returned")] = None

    @model_validator(mode="after")
    def _check(self) -> "ContinueForm":
        if self.stream and self.response_format == "flac":
            raise ValueError("stream: flac is whole only; stream json, wav, pcm, opus or mp3")
        if self.prompt_end is not None and self.prompt_end <= self.prompt_start:
            raise ValueError("prompt_end: must lie after prompt_start")
        if self.n > 1 and self.response_format != "json":
            raise ValueError("n: a bare audio answer holds one continuation; use json for more")
        return self


class ScoreForm(Form):
    """Fields of POST /score."""

    model_config = ConfigDict(json_schema_extra={"example": {"detail": "tokens", "prompt_seconds": 1}})

    prompt_seconds: Annotated[
        float, Field(ge=0, le=MAX_CLIP_SECONDS, description="so much is context, and not scored")
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


class ErrorBody(BaseModel):
    message: str
    type: str
    code: str
    param: str | None = None
    request_id: str | None = None


class ErrorResponse(BaseModel):
    """Every answer that is not a 200."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "message": "the file holds no samples", "type": "invalid_request_error", "code": "audio_invalid",
                    "param": "file", "request_id": "6f1d",
                }
            }
        }
    )  # fmt: skip

    error: ErrorBody


class AudioBody(BaseModel):
    format: Literal["wav"]
    data: str = Field(description="base64")


class ChoiceFigures(BaseModel):
    """A choice without its audio."""

    index: int
    seconds: float = Field(description="of the audio, the prompt included when asked for")
    tokens: list[int] = Field(description="coarse tokens, 75 a second")
    logprobs: list[float] = Field(description="natural logarithms, before temperature, top_k and top_p")
    nll: float = Field(description="minus the mean of logprobs, nats a token")
    perplexity: float
    finish_reason: Literal["length", "timeout", "cancelled"]


class Choice(ChoiceFigures):
    audio: AudioBody


class PromptBody(BaseModel):
    seconds: float
    tokens: int
    nll: float


class Timings(BaseModel):
    queue_seconds: float
    prefill_seconds: float
    first_audio_seconds: float
    total_seconds: float
    real_time_factor: float = Field(description="seconds of audio made in a second of the closed loop")


class Figures(BaseModel):
    """An answer without its audio: what `audio.done` ends a stream with."""

    id: str
    object: Literal["audio.continuation"] = "audio.continuation"
    created: int
    model: str
    seed: int
    sample_rate: int
    frame_rate: int
    prompt: PromptBody
    choices: Sequence[ChoiceFigures]
    timings: Timings


class ContinueResponse(Figures):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "cont-6f1d", "object": "audio.continuation", "created": 1790000000, "model": "default", "seed": 7,
                "sample_rate": 24000, "frame_rate": 75, "prompt": {"seconds": 6.33, "tokens": 475, "nll": 4.2},
                "choices": [{
                    "index": 0, "audio": {"format": "wav", "data": "UklGRiQAAABXQVZF"}, "seconds": 3.0,
                    "tokens": [17, 940], "logprobs": [-3.1, -4.0], "nll": 3.55, "perplexity": 34.8,
                    "finish_reason": "length",
                }],
                "timings": {
                    "queue_seconds": 0.0, "prefill_seconds": 0.2, "first_audio_seconds": 0.3, "total_seconds": 1.4,
                    "real_time_factor": 2.7,
                },
            }
        }
    )  # fmt: skip

    choices: Sequence[Choice]


class Delta(BaseModel):
    """The data of `audio.delta`: the next frames of one choice, or a part of the prompt, which has no tokens here."""

    index: int = Field(description="of the choice")
    audio: str = Field(description="base64 of s16le, 24 kHz, mono")
    tokens: list[int]
    logprobs: list[float]


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


class ModelBody(BaseModel):
    id: str
    object: Literal["model"] = "model"
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


def multipart(form: type[Form], many: bool) -> dict[str, Any]:
    """OpenAPI's description of a form with its file. Routes read the body themselves, after admission."""
    schema = form.model_json_schema()
    binary = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    file: dict[str, Any] = {"type": "array", "items": binary, "minItems": 1} if many else binary
    schema["properties"] = {"file": file | {"description": "audio, any rate, any number of channels"}} | schema[
        "properties"
    ]
    schema["required"] = ["file"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
