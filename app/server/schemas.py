"""What the forms and the answers of all routes share. Field names, units and ranges are a contract (docs/api.md)."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import InvalidParameter

MAX_CLIP_SECONDS = 86_400.0  # no clip is longer than a day: the settings allow far less
FILE_TYPES = "audio/*, video/*"  # for who makes requests from the description; the server looks at the bytes alone
FAILURES = {
    400: "malformed_request, malformed_form", 401: "invalid_api_key", 404: "prompt_not_found, model_not_found",
    408: "upload_timeout", 413: "file_too_large, audio_too_long", 415: "unsupported_format",
    422: "invalid_parameter, audio_too_short, audio_invalid", 429: "overloaded, rate_limited", 431: "head_too_large",
    500: "internal_error", 503: "not_ready, draining", 504: "timeout", 507: "storage_full",
}  # fmt: skip
ANYWHERE = (400, 408, 431, 500)  # a head that is no HTTP, late or too long; a bug
OF_UPLOADS = tuple(FAILURES)
WARNINGS = Field(
    None,
    description="only where there is something to tell: audio_lost, phase_inverted, silent_clip, not_speech_or_piano",
)


class Form(BaseModel):
    """Fields beside the file; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[
        str | None, Field(max_length=200, description="the name of a bundle that is served; the first one's by default")
    ] = None


F = TypeVar("F", bound=Form)


def checked(form: type[F], fields: dict[str, str]) -> F:
    """Text fields -> a schema. Raises InvalidParameter that names the first field at fault."""
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if not place and ": " in message:
            place, message = message.split(": ", 1)
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        raise InvalidParameter(f"{place}: {message}"[:300], place[:64] or None) from error


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


def _cannot_be_null(field: dict[str, Any]) -> None:
    """A form's field can be absent, and has no word for null."""
    choices = [one for one in field.pop("anyOf", []) if one != {"type": "null"}]
    if len(choices) == 1:
        field |= choices[0]
    elif choices:
        field["anyOf"] = choices
    if field.get("default", "") is None:
        del field["default"]


def multipart(form: type[Form], many: bool = False, file_needed: bool = True) -> dict[str, Any]:
    """OpenAPI's description of a form with its file. Routes read the body themselves, after admission."""
    schema = form.model_json_schema()
    for field in schema["properties"].values():
        _cannot_be_null(field)
    binary = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    file: dict[str, Any] = {"type": "array", "items": binary, "minItems": 1} if many else binary
    schema["properties"] = {"file": file | {"description": "audio, any rate, any number of channels"}} | schema[
        "properties"
    ]
    if file_needed:
        schema["required"] = ["file"]
    content = {"schema": schema, "encoding": {"file": {"contentType": FILE_TYPES}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route's description tells of its errors: those codes, beside what may happen to any request."""
    told = sorted({*ANYWHERE, *codes})
    return {code: {"model": ErrorResponse, "description": FAILURES[code]} for code in told}
