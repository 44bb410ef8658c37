"""The events of a session, as docs/api.md has them: JSON objects with a ``type``. Names are a contract.

They are called as in OpenAI's Realtime API where that has such an event.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.audio.notices import Notice
from app.continuations.schemas import ContinueForm
from app.errors import InvalidParameter
from app.server.schemas import ErrorBody, checked
from model.constants import SAMPLE_RATE_HZ
from model.inference.sampling import SamplingOptions

RESPONSE_FIELDS = ("seconds", *(option.name for option in dataclasses.fields(SamplingOptions)), "n", "timeout_seconds")
InputFormat = Literal["pcm16", "opus", "ogg", "webm"]


class ClientEvent(BaseModel):
    """What a client sends; unknown fields are refused. ``event_id`` comes back with an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: Annotated[str | None, Field(max_length=200)] = None


class SessionUpdate(ClientEvent):
    """What holds from now on: fields of /continue for responses to come, and the rate of audio to come."""

    type: Literal["session.update"]
    session: dict[str, Any]


class Append(ClientEvent):
    """Audio, which is read at once. A binary message is the same without JSON and base64."""

    type: Literal["input_audio_buffer.append"]
    audio: Annotated[str, Field(description="base64 of s16le, mono; or of what `input_audio_format` says")]


class Commit(ClientEvent):
    """What was appended is the prompt."""

    type: Literal["input_audio_buffer.commit"]


class Clear(ClientEvent):
    """Forget what was appended since the last commit."""

    type: Literal["input_audio_buffer.clear"]


class CreateResponse(ClientEvent):
    """Continue the last prompt, or the last response; ``response`` has fields of /continue for this one alone."""

    type: Literal["response.create"]
    response: Annotated[dict[str, Any], Field(default_factory=dict)]
    after: Literal["prompt", "response"] = "prompt"


class CancelResponse(ClientEvent):
    """Stop the response that is under way; what was appended meanwhile stays."""

    type: Literal["response.cancel"]


AnyClientEvent = Annotated[
    SessionUpdate | Append | Commit | Clear | CreateResponse | CancelResponse, Field(discriminator="type")
]
_EVENTS: TypeAdapter[AnyClientEvent] = TypeAdapter(AnyClientEvent)


def client_event(text: str) -> AnyClientEvent:
    """An event from its JSON. Raises InvalidParameter."""
    try:
        return _EVENTS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "type"
        raise InvalidParameter(f"{place}: {first['msg']}"[:300], place[:64]) from None


class SessionOptions(BaseModel):
    """What `session.update` sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_audio_format: Annotated[
        InputFormat,
        Field(
            description="of audio that is appended: s16le; or Opus, of which an event holds one packet (`opus`), or "
            "any piece of an Ogg or WebM stream, as MediaRecorder gives them"
        ),
    ] = "pcm16"
    sample_rate: Annotated[
        int, Field(ge=8_000, le=192_000, description="of samples that are appended, Hz; Opus says its own")
    ] = SAMPLE_RATE_HZ
    response: dict[str, Any] = Field(default_factory=dict, description="fields of /continue, for responses to come")

    def updated(self, given: Mapping[str, Any]) -> "SessionOptions":
        """With what is given in the place of what was. Raises InvalidParameter."""
        own = {name: value for name, value in given.items() if name in RESPONSE_FIELDS}
        rest = {name: value for name, value in given.items() if name not in RESPONSE_FIELDS}
        if "response" in rest:
            raise InvalidParameter("response: its fields are fields of session themselves", "response")
        form(self.response | own)  # or a response would be refused, for a mistake made long before
        try:
            kept = {"input_audio_format": self.input_audio_format, "sample_rate": self.sample_rate}
            return SessionOptions(**{**kept, **rest, "response": self.response | own})
        except (ValidationError, TypeError) as error:
            name = str(error.errors()[0]["loc"][0]) if isinstance(error, ValidationError) else "session"
            raise InvalidParameter(f"{name}: no such setting of a session, or out of range"[:300], name[:64]) from None


def form(fields: Mapping[str, Any]) -> ContinueForm:
    """A response's fields as those of /continue. Raises InvalidParameter."""
    for name in fields:
        if name not in RESPONSE_FIELDS:
            raise InvalidParameter(f"{name}: there is no such field of a response"[:300], name[:64])
    return checked(ContinueForm, {name: value for name, value in fields.items() if value is not None})


class SessionBody(BaseModel):
    id: str
    object: Literal["audio.session"] = "audio.session"
    model: str
    input_audio_format: InputFormat
    sample_rate: int
    output_sample_rate: int = SAMPLE_RATE_HZ
    frame_rate: int
    response: dict[str, Any]


class SessionTold(BaseModel):
    type: Literal["session.created", "session.updated"]
    session: SessionBody


class Scored(BaseModel):
    """The next frames of the audio that comes, as soon as they are read."""

    type: Literal["input_audio.scored"] = "input_audio.scored"
    first: int = Field(description="index of the first token, from the last commit on")
    tokens: list[int]
    logprobs: list[float]
    nll: float = Field(description="of all since the last commit, nats a token")


class PromptTold(BaseModel):
    id: str | None = Field(description="for `prompt` of /continue; None when the server keeps none")
    seconds: float
    tokens: int
    nll: float
    warnings: list[Notice] = Field(description="silent_clip, not_speech_or_piano; mostly none")


class Committed(BaseModel):
    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"
    prompt: PromptTold


class Cleared(BaseModel):
    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class ResponseCreated(BaseModel):
    type: Literal["response.created"] = "response.created"
    response_id: str
    seed: int


class AudioDelta(BaseModel):
    type: Literal["response.output_audio.delta"] = "response.output_audio.delta"
    response_id: str
    index: int = Field(description="of the choice")
    delta: str = Field(description="base64 of s16le, 24 kHz, mono")
    tokens: list[int]
    logprobs: list[float]


class ChoiceTold(BaseModel):
    index: int
    tokens: int
    seconds: float
    nll: float | None
    finish_reason: Literal["length", "timeout", "cancelled"]


class ResponseTold(BaseModel):
    id: str = Field(description="for `continue_from` of /continue, where the status is not `cancelled`")
    object: Literal["audio.response"] = "audio.response"
    status: Literal["completed", "incomplete", "cancelled", "failed"]
    seed: int
    choices: list[ChoiceTold]
    first_audio_seconds: float | None = Field(description="from `response.create` until it was handed to the socket")
    warnings: list[Notice] | None = None


class ResponseDone(BaseModel):
    type: Literal["response.done"] = "response.done"
    response: ResponseTold


class ErrorTold(BaseModel):
    """Something was refused, or went wrong; the session goes on unless it is closed next."""

    type: Literal["error"] = "error"
    event_id: str | None = None
    error: ErrorBody


AnyServerEvent = Annotated[
    SessionTold | Scored | Committed | Cleared | ResponseCreated | AudioDelta | ResponseDone | ErrorTold,
    Field(discriminator="type"),
]
