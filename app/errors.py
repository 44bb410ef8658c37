"""Errors: typed exceptions inside, one envelope outside."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger("whispergpt")


class ServiceError(Exception):
    """An answer other than 200. ``code`` is for machines, the message for people; neither holds a path."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.headers = message, param, headers
        self.counted = False  # in `input_errors` already

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The envelope's content."""
        return {
            "message": self.message, "type": self.type, "code": self.code, "param": self.param, "request_id": request_id
        }  # fmt: skip


class ClientError(ServiceError):
    status = 422
    type = "invalid_request_error"


class MalformedForm(ClientError):
    status, code = 400, "malformed_form"


class InvalidApiKey(ClientError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class UploadTimeout(ClientError):
    status, code = 408, "upload_timeout"


class FileTooLarge(ClientError):
    status, code = 413, "file_too_large"


class AudioTooLong(ClientError):
    status, code = 413, "audio_too_long"


class UnsupportedFormat(ClientError):
    status, code = 415, "unsupported_format"


class InvalidParameter(ClientError):
    code = "invalid_parameter"


class AudioTooShort(ClientError):
    code = "audio_too_short"


class AudioInvalid(ClientError):
    code = "audio_invalid"


class Overloaded(ServiceError):
    status, code, type = 429, "overloaded", "overloaded_error"


class NotReady(ServiceError):
    status, code = 503, "not_ready"


class Draining(ServiceError):
    status, code = 503, "draining"


class DeadlinePassed(ServiceError):
    status, code, type = 504, "timeout", "timeout_error"


class ClientGone(Exception):
    """The client left; nobody reads the answer."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


FRAMEWORK = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed"}


def answer(request: Request, error: ServiceError) -> JSONResponse:
    """The response that an error becomes."""
    return JSONResponse(
        {"error": error.body(getattr(request.state, "request_id", None))}, error.status, headers=error.headers
    )


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    if isinstance(error, ClientError) and not error.counted:
        request.app.state.metrics.input_errors.labels(error.code).inc()
    return answer(request, error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    wrapped = ClientError(str(error.detail), headers=dict(error.headers or {}))
    wrapped.status = error.status_code
    wrapped.code = FRAMEWORK.get(error.status_code, "invalid_request")
    return answer(request, wrapped)


async def _client_gone(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ClientGone)
    request.app.state.metrics.disconnects.labels(error.stage).inc()
    return JSONResponse(None, 499)  # nginx's status for it; only logs and metrics see it


def told(request: Request, error: Exception) -> ServiceError:
    """An exception as it may be told. A bug is logged whole, and told without a traceback."""
    if isinstance(error, ServiceError):
        return error
    log.error("request %s failed", getattr(request.state, "request_id", None), exc_info=error)
    return ServiceError("something went wrong here; the log has the details under the request id")


def unexpected(request: Request, error: Exception) -> JSONResponse:
    """The answer to a bug."""
    return answer(request, told(request, error))


def install(app: FastAPI) -> None:
    """Map exceptions to the envelope; bugs are `RequestMiddleware`'s, so that they get an id and are counted too."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, _client_gone)
