"""Traces of requests: which spans, when, and what is in them."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.errors import UserError
from app.server.tracing import Tracing, tracing_for
from app.settings import Settings
from tests.support.engine import Visitor, busy, until

KEY = "sesame-4711"


@pytest.fixture
def traced(serve: Any) -> Callable[..., tuple[Any, InMemorySpanExporter]]:
    """Makes services whose spans stay in memory."""

    def make(**settings: Any) -> tuple[Any, InMemorySpanExporter]:
        service, exporter = serve(**settings), InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        service.app.state.tracing = Tracing(provider)
        return service, exporter

    return make


def spans_of(exporter: InMemorySpanExporter) -> tuple[Any, list[Any]]:
    """The last request's span, and its parts in order."""
    found = exporter.get_finished_spans()
    root = [span for span in found if span.kind.name == "SERVER"][-1]
    parts = [span for span in found if span.parent and span.parent.span_id == root.context.span_id]
    return root, sorted(parts, key=lambda span: span.start_time)


def in_order(root: Any, parts: list[Any]) -> None:
    """One after the other, and within the request."""
    slack = 1_000_000
    for before, after in itertools.pairwise(parts):
        assert before.end_time <= after.start_time + slack
    assert root.start_time <= parts[0].start_time + slack and parts[-1].end_time <= root.end_time + slack
    assert all(part.start_time <= part.end_time for part in parts)
    assert all(part.context.trace_id == root.context.trace_id for part in parts)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_continuation(traced: Any, clip: bytes, streamed: bool) -> None:
    service, exporter = traced()
    fields = {"seconds": "0.4", "n": "2"} if not streamed else {"seconds": "0.4", "stream": "true"}
    answer = service.post("/continue", clip, data=fields, headers={"x-request-id": "a1"})
    assert answer.status_code == 200
    root, parts = spans_of(exporter)
    assert root.name == "POST /continue"
    names = ["upload", "decode", "queue", "prefill", "slot", "step loop"]
    assert [part.name for part in parts] == (names if streamed else [*names, "encode"])
    in_order(root, parts)
    told = {"http.route": "/continue", "http.request.method": "POST", "http.response.status_code": 200,
            "whispergpt.outcome": "ok", "whispergpt.request_id": "a1", "whispergpt.streamed": streamed}  # fmt: skip
    assert {name: root.attributes[name] for name in told} == told
    prefill = parts[3]
    seconds = (prefill.end_time - prefill.start_time) / 1e9
    assert seconds == pytest.approx(root.attributes["whispergpt.prefill_seconds"], abs=0.002)


def test_a_score(traced: Any, clip: bytes) -> None:
    service, exporter = traced()
    service.post("/score", clip, b"no audio", clip)
    root, parts = spans_of(exporter)
    clip_parts = ["decode", "queue", "score"]
    assert [part.name for part in parts] == ["upload", *clip_parts, "decode", *clip_parts, "encode"]
    in_order(root, parts)
    assert root.attributes["whispergpt.clips"] == 3


def test_a_refusal_and_a_fault(traced: Any, clip: bytes) -> None:
    service, exporter = traced()

    async def broken() -> None:
        raise RuntimeError("a secret")

    service.app.add_api_route("/broken", broken)
    service.post("/continue", b"no audio")
    root, parts = spans_of(exporter)
    assert [part.name for part in parts] == ["upload", "decode"]
    assert root.attributes["whispergpt.error"] == "unsupported_format" and root.status.status_code.name == "UNSET"
    service.get("/broken")
    root, parts = spans_of(exporter)
    assert root.status.status_code.name == "ERROR" and not parts
    assert "secret" not in root.to_json()


def test_a_client_that_leaves(traced: Any, clip: bytes) -> None:
    service, exporter = traced(threads=1)
    with busy(service):
        visitor = Visitor(service, "/continue", clip)
        until(lambda: service.app.state.engine.prefill_pool.queues["read"].qsize() == 1)
        visitor.leave()
    root, parts = spans_of(exporter)
    assert [part.name for part in parts] == ["upload", "decode", "queue"]
    assert root.attributes["whispergpt.outcome"] == "disconnected" and root.attributes["whispergpt.left_at"] == "queue"


def test_a_trace_goes_on(traced: Any) -> None:
    """The client's; what is no trace is none."""
    service, exporter = traced()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    service.get("/v1/models", headers={"traceparent": f"00-{trace}-{parent}-01"})
    root, _ = spans_of(exporter)
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (trace, parent)
    service.get("/v1/models", headers={"traceparent": "00-nothing"})
    assert spans_of(exporter)[0].parent is None


def test_probes_are_not_traced(traced: Any) -> None:
    service, exporter = traced()
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        service.get(path)
    assert not exporter.get_finished_spans()


def test_no_span_holds_a_key(traced: Any, clip: bytes) -> None:
    service, exporter = traced(api_keys={"alice": KEY})
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}, {"x-api-key": f"{KEY}x"}):
        for path in (f"/v1/models?key={KEY}", f"/{KEY}", f"/score?{KEY}"):
            service.get(path, headers=headers)
        service.post("/score", clip, headers=headers)
    spans = exporter.get_finished_spans()
    assert len(spans) > 12
    assert not any(KEY in span.to_json() for span in spans)
    assert {span.attributes["whispergpt.key"] for span in spans if "whispergpt.key" in span.attributes} == {"alice"}


def test_off_it_costs_no_import() -> None:
    code = (
        "import sys\nfrom app.main import create_app\nfrom app.settings import Settings\n"
        "assert create_app(Settings()).state.tracing is None\n"
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"pip install .*\[tracing\]"):
        tracing_for(Settings(otlp_endpoint="http://127.0.0.1:4318"))


def test_a_collector_gets_the_spans(bundle: Any, clip: bytes) -> None:
    """By HTTP, at the latest when the server ends."""
    from tests.support.service import serving

    got: list[tuple[str, str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, self.headers["content-type"], body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            with serving(bundle, otlp_endpoint=f"http://127.0.0.1:{collector.server_port}/") as service:
                assert service.post("/continue", clip, data={"seconds": "0.2"}).status_code == 200
        finally:
            collector.shutdown()
            thread.join()
    assert {(path, kind) for path, kind, _ in got} == {("/v1/traces", "application/x-protobuf")}
    assert all(word in b"".join(body for _, _, body in got) for word in (b"whisper-gpt", b"step loop", b"/continue"))
