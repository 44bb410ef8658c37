"""Errors become answers: one envelope."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from app.errors import ClientError, ClientGone, Overloaded, ServiceError
from app.server.logs import note

log = logging.getLogger("whispergpt")
FRAMEWORK = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed"}


def answer(request: HTTPConnection, error: ServiceError) -> JSONResponse:
    """The response that an error becomes."""
    note(request, error=error.code)
    headers = error.headers
    if isinstance(error, Overloaded) and request.app.state.shared is not None and request.scope["type"] == "http":
        headers = {**(headers or {}), "connection": "close"}  # another process may have room: by another connection
    return JSONResponse(
        {"error": error.body(getattr(request.state, "request_id", None))}, error.status, headers=headers
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
    note(request, left_at=error.stage)
    return JSONResponse(None, 499)  # nginx's status for it; only logs and metrics see it


def as_service_error(request: HTTPConnection, error: Exception) -> ServiceError:
    """An exception as it may be told. A bug is logged whole, and told without a traceback."""
    if isinstance(error, ServiceError):
        return error
    log.error("request %s failed", getattr(request.state, "request_id", None), exc_info=error)
    return ServiceError("something went wrong here; the log has the details under the request id")


def unexpected(request: Request, error: Exception) -> JSONResponse:
    """The answer to a bug."""
    return answer(request, as_service_error(request, error))


def install(app: FastAPI) -> None:
    """Map exceptions to the envelope; bugs are `RequestMiddleware`'s, so that they get an id and are counted too."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, _client_gone)
