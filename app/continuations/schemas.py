"""Requests and responses, as docs/api.md has them. Field names, units and ranges are a contract."""

import secrets
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.audio.formats import STREAMED, Format, listed
from app.audio.notices import Notice
from app.prompts.schemas import PROMPT_END, PROMPT_START
from app.server.schemas import WARNINGS, Form
from model.constants import MAX_SEED

if TYPE_CHECKING:
    from model.inference.sampling import SamplingOptions

SEED_BITS = 48  # of a drawn seed: exact in JavaScript's numbers, so that it survives a browser


class ContinueForm(Form):
    """Fields of POST /continue."""

    model_config = ConfigDict(json_schema_extra={"example": {"seconds": 3, "seed": 7, "top_p": 0.95}})

    seconds: Annotated[float, Field(ge=0.1, description="how much to make; rounded up to whole frames of 1/75 s")] = 5.0
    temperature: Annotated[float, Field(ge=0, le=2, description="0 takes the likeliest token always")] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1, description="draw among the k likeliest tokens; 0 = all")] = 0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="draw among the likeliest tokens that together have this probability")
    ] = 1.0
    keep_level: Annotated[
        bool,
        Field(
            description="temperature and top_p choose among tokens about as loud as each other; each level of loudness "
            "(after top_k, each that has a token left) stays as likely as the model has it. false: they choose among "
            "all, which below 1 often ends in silence"
        ),
    ] = True
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED, description="the same one gives the same bytes; drawn and told when absent"),
    ] = None
    n: Annotated[int, Field(ge=1, le=4, description="continuations of the same prompt")] = 1
    prompt: Annotated[
        str | None, Field(max_length=200, description="id of a prompt that the server keeps, instead of a file")
    ] = None
    continue_from: Annotated[
        str | None,
        Field(max_length=200, description="id of an earlier continuation, to go on where it ended, instead of a file"),
    ] = None
    continue_choice: Annotated[int, Field(ge=0, le=3, description="which of its choices")] = 0
    store: Annotated[bool, Field(description="keep where it ends for a while, so that continue_from can name it")] = (
        True
    )
    prompt_start: Annotated[float, PROMPT_START] = 0.0
    prompt_end: Annotated[float | None, PROMPT_END] = None
    include_prompt: Annotated[bool, Field(description="put the prompt's own samples in front of the continuation")] = (
        False
    )
    response_format: Annotated[Literal["json", Format], Field(description="json, or the bare audio")] = "json"
    stream: Annotated[bool, Field(description="send it while it is made; json then comes as server-sent events")] = (
        False
    )
    timeout_seconds: Annotated[float | None, Field(gt=0, description="what is ready by then is returned")] = None

    @model_validator(mode="after")
    def _check(self) -> "ContinueForm":
        if self.stream and self.response_format not in ("json", *STREAMED):
            raise ValueError(
                f"stream: {self.response_format} is whole only; stream {listed(('json', *STREAMED), 'or')}"
            )
        if self.prompt_end is not None and self.prompt_end <= self.prompt_start:
            raise ValueError("prompt_end: must lie after prompt_start")
        if self.n > 1 and self.response_format != "json":
            raise ValueError("n: a bare audio answer holds one continuation; use json for more")
        if self.prompt is not None and self.continue_from is not None:
            raise ValueError("continue_from: give this or prompt")
        kept = self.prompt is not None or self.continue_from is not None
        if kept and (self.prompt_start or self.prompt_end is not None):
            raise ValueError("prompt_start: what the server keeps was cut before")
        if self.continue_choice and self.continue_from is None:
            raise ValueError("continue_choice: is of continue_from")
        if self.include_prompt and self.continue_from is not None:
            raise ValueError("include_prompt: what is made goes on without a joint; put it behind the earlier audio")
        return self

    def seeded(self) -> "ContinueForm":
        """The form with a seed: its own, or one that is drawn now."""
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbits(SEED_BITS)})

    def sampling(self) -> "SamplingOptions":
        """How tokens are drawn: each option of the model is a field of the same name here. Draws the seed if absent."""
        from model.inference.sampling import SamplingOptions  # torch: not for those who only look at the fields

        form = self.seeded()
        return SamplingOptions(**{field.name: getattr(form, field.name) for field in fields(SamplingOptions)})


class AudioBody(BaseModel):
    format: Literal["wav"]
    data: str = Field(description="base64")


class ChoiceSummary(BaseModel):
    """A choice without its audio."""

    index: int
    seconds: float = Field(description="of the audio, the prompt included when asked for")
    tokens: list[int] = Field(description="coarse tokens, 75 a second")
    logprobs: list[float] = Field(description="natural logarithms, before temperature, top_k and top_p")
    nll: float = Field(description="minus the mean of logprobs, nats a token")
    perplexity: float
    finish_reason: Literal["length", "timeout", "cancelled"]


class Choice(ChoiceSummary):
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


class ContinuationSummary(BaseModel):
    """An answer without its audio: what `audio.done` ends a stream with."""

    id: str
    object: Literal["audio.continuation"] = "audio.continuation"
    created: int
    model: str
    seed: int
    sample_rate: int
    frame_rate: int
    prompt: PromptBody
    choices: Sequence[ChoiceSummary]
    timings: Timings
    warnings: list[Notice] | None = WARNINGS


class ContinueResponse(ContinuationSummary):
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
