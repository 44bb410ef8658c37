"""Spans of requests for OpenTelemetry, with the extra `tracing`; nothing of it is imported unless a collector is named.

FastAPI's own instrumentation tells paths and queries, in which people put keys, and knows nothing of what happens on
the engine's threads. Here a request's times are gathered while it runs, as plain numbers, and become spans at its end.
"""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request

from app import __version__
from app.engine.requests import EngineRequest, PromptRequest, ScoreRequest
from app.errors import UserError
from app.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "whisper-gpt"
TOLD = (str, bool, int, float)


class RequestTrace:
    """One request: its span, and the times of what was done for it (`time.monotonic` seconds)."""

    def __init__(self, span: "Span") -> None:
        self.span = span
        self.parts: list[tuple[str, float, float]] = []
        self.engine_requests: list[EngineRequest] = []
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    @property
    def trace_id(self) -> str:
        return f"{self.span.get_span_context().trace_id:032x}"

    def unix_ns(self, moment: float) -> int:
        return round(moment * 1e9) + self._offset_ns

    def all_parts(self) -> list[tuple[str, float, float]]:
        """With what the engine did. A request that ended early has not all of it."""
        parts = list(self.parts)
        for one in self.engine_requests:
            end = one.ended or time.monotonic()
            if isinstance(one, ScoreRequest):
                marks = [("queue", one.submitted), ("score", one.started)]
            elif isinstance(one, PromptRequest):
                marks = [("queue", one.submitted), ("prefill", one.started)]
            else:
                marks = [("queue", one.submitted), ("prefill", one.read_began), ("slot", one.read_ended),
                         ("step loop", one.started)]  # fmt: skip
            reached = [(name, moment) for name, moment in marks if moment]
            parts += [
                (name, begin, following)
                for (name, begin), following in zip(reached, [*(moment for _, moment in reached[1:]), end], strict=True)
            ]
        return parts


class Tracing:
    """Makes spans with a provider of OpenTelemetry's."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("whispergpt", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> RequestTrace:
        """A request has come; when its client has a trace, this is a part of it (W3C Trace Context)."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(headers)
        attributes = {"http.request.method": method, "http.route": route}
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, attributes)
        return RequestTrace(span)

    def end(self, trace: RequestTrace, status: int, outcome: str, facts: Mapping[str, Any]) -> None:
        """It has its answer, or is gone."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span = trace.span
        span.set_attribute("http.response.status_code", status)
        for name, value in {"outcome": outcome, **facts}.items():
            if isinstance(value, TOLD):
                span.set_attribute(f"whispergpt.{name}", value)
        if outcome == "server_error":
            span.set_status(Status(StatusCode.ERROR))
        if span.is_recording():
            context = set_span_in_context(span)
            for name, begin, end in trace.all_parts():
                part = self._tracer.start_span(name, context, start_time=trace.unix_ns(begin))
                part.end(trace.unix_ns(end))
        span.end()

    def close(self) -> None:
        """Sends what waits to be sent."""
        self._provider.shutdown()


def tracing_for(settings: Settings) -> Tracing | None:
    """None without a collector. Raises UserError when what it takes is not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UserError('otlp_endpoint: install its packages first: pip install ".[tracing]" in a clone') from error
    resource = Resource.create({
        "service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE), "service.version": __version__
    })  # fmt: skip
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def trace_of(request: Request) -> RequestTrace | None:
    """None where nothing is traced."""
    trace: RequestTrace | None = getattr(request.state, "trace", None)
    return trace


def mark(request: Request, name: str, began: float) -> None:
    """What was done for the request from then (`time.monotonic` seconds) until now becomes a span."""
    if (trace := trace_of(request)) is not None:
        trace.parts.append((name, began, time.monotonic()))


def follow(request: Request, work: EngineRequest) -> None:
    """What the engine does for the request becomes spans, too."""
    if (trace := trace_of(request)) is not None:
        trace.engine_requests.append(work)
