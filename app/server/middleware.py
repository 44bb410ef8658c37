"""The small ASGI middleware that counts, times, names and logs requests."""

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Draining
from app.metrics import Metrics
from app.server.errors import answer, unexpected
from app.server.logs import PROBES, answered
from app.server.tracing import Tracing

ROUTES = {"/", "/continue", "/score", "/metrics", "/livez", "/readyz", "/health", "/v1/models", "/docs",
          "/openapi.json", "/v1/audio/continuations", "/v1/audio/prompts", "/v1/audio/scores",
          "/v1/audio/session", "/v1/admin/models"}  # fmt: skip
WITH_A_NAME = {
    "/v1/audio/prompts": "prompt_id",
    "/v1/models": "model",
    "/v1/admin/models": "model",
}  # and a name of the client's behind it
SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"frame-ancestors 'none'"))
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def outcome_of(status: int) -> str:
    """The label of a status: few values, so that the series stay few."""
    if status == 499:
        return "disconnected"
    return "ok" if status < 400 else "client_error" if status < 500 else "server_error"


def route_of(path: str) -> str:
    """The label of a path: its route's template, or "other". Few values again, whatever names clients send."""
    if path in ROUTES:
        return path
    begin, _, name = path.rpartition("/")
    return f"{begin}/{{{WITH_A_NAME[begin]}}}" if name and begin in WITH_A_NAME else "other"


class RequestMiddleware:
    """Gives each request an id, takes it over from the client, returns it; counts, times and logs the request.

    Each answer forbids browsers to guess its type and to show it in a frame; a page may have a longer policy.

    A stream that did not end as its status promised says so in the request's state, as ``outcome``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    @staticmethod
    def _begun(scope: Scope) -> tuple[dict[str, Any], float]:
        """The request's state, with its id, and when it came."""
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state["arrived"] = time.monotonic()
        return state, state["arrived"]

    async def _session(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: one request, from its opening to its end. What it was refused with is its status."""
        state, started = self._begun(scope)
        status = 403  # what a server answers where nobody takes it up

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            if message["type"] in ("websocket.http.response.start", "websocket.accept"):
                message["headers"] = [*message.get("headers", []), (b"x-request-id", state["request_id"].encode())]
            await send(message)

        route = route_of(scope["path"])
        try:
            await self.app(scope, receive, send_named)
        except BaseException:
            status = 500
            raise
        finally:
            outcome, seconds = outcome_of(status), time.monotonic() - started
            self.metrics.requests.labels(route, outcome).inc()
            client = scope["client"][0] if scope.get("client") else None
            answered(state, client, "GET", route, status, outcome, seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._session(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state, started = self._begun(scope)
        request_id = state["request_id"]
        if scope["method"] == "HEAD":  # what GET would be answered, whatever the route; the server leaves the body out
            scope = {**scope, "method": "GET"}
        status, begun = 500, False

        async def send_named(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers.append((b"x-request-id", request_id.encode()))
                given = {name.lower() for name, _ in headers}
                headers += [header for header in SAFE_HEADERS if header[0] not in given]
            await send(message)

        route = route_of(scope["path"])
        method = scope["method"] if scope["method"] in METHODS else "other"
        tracing: Tracing | None = scope["app"].state.tracing if route not in PROBES else None
        if tracing is not None:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            trace = state["trace"] = tracing.begin(method, route, headers)
            state["facts"] = {"trace_id": trace.trace_id}
        try:
            await self.app(scope, receive, send_named)
        except asyncio.CancelledError:  # the server stops, and its patience is at an end
            if not begun:
                await answer(Request(scope), Draining("the server is shutting down"))(scope, receive, send_named)
            raise
        except Exception as error:
            if begun:
                raise  # too late for another answer: the server cuts the connection
            await unexpected(Request(scope), error)(scope, receive, send_named)
        finally:
            outcome, seconds = state.get("outcome", outcome_of(status)), time.monotonic() - started
            self.metrics.requests.labels(route, outcome).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            client = scope["client"][0] if scope.get("client") else None
            answered(state, client, method, route, status, outcome, seconds)
            if tracing is not None:
                known = {"request_id": request_id, "key": state.get("key")}
                tracing.end(state["trace"], status, outcome, known | state["facts"])
