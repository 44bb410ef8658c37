"""What surrounds the two endpoints: probes, metrics, keys, ids, the description, settings."""

import asyncio
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr, ValidationError

from app.main import create_app, work_of
from app.server.middleware import route_of
from app.settings import Settings, load_settings, warn_of_unknown_names

OPENAPI = Path(__file__).with_name("openapi.json")
KEYS: dict[str, Any] = {"api_keys": [SecretStr("first"), SecretStr("second")]}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_probe(service: Any, path: str) -> None:
    assert service.get(path).status_code == 200


def test_models(service: Any, bundle: Any) -> None:
    (model,) = service.get("/v1/models").json()["data"]
    assert model["id"] == bundle.name
    assert (model["created"], model["owned_by"]) == (0, "whisper-gpt"), "OpenAI's client wants both"
    assert model["preset"] == "tiny"
    assert model["parameters"] > 0
    assert model["fine_parameters"] > 0
    assert model["codec"]["codebooks"] == 8
    assert (model["sample_rate"], model["frame_rate"]) == (24_000, 75)
    assert model["window_seconds"] == 48 / 75


@pytest.mark.parametrize("given", ["abc-123", "A.b:c_9"])
def test_request_id_is_kept(service: Any, given: str) -> None:
    for path in ("/livez", "/nowhere"):
        assert service.get(path, headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 200, 'quote"', "<script>"])
def test_request_id_is_made(service: Any, given: str | None) -> None:
    made = service.get("/livez", headers={} if given is None else {"x-request-id": given}).headers["x-request-id"]
    assert made != given
    assert len(made) == 32


def test_metrics_count_what_happened(serve: Any, clip: bytes) -> None:
    service = serve(threads=1)  # one worker: both choices are rows of the same steps
    service.post("/continue", clip, data={"seconds": "0.4", "n": "2"})
    service.post("/score", clip, b"")
    service.post("/continue", b"text, and no audio at all", headers={"x-request-id": "x"})
    service.get("/nowhere")
    value = service.value
    assert value("requests_total", route="/continue", outcome="ok") == 1
    assert value("requests_total", route="/continue", outcome="client_error") == 1
    assert value("requests_total", route="/score", outcome="ok") == 1
    assert value("requests_total", route="other", outcome="client_error") == 1
    assert value("request_seconds_count", route="/continue") == 2
    assert value("input_errors_total", reason="unsupported_format") == 1
    assert value("input_errors_total", reason="audio_invalid") == 1
    assert value("generated_tokens_total") == 60
    assert value("generated_audio_seconds_total") == pytest.approx(0.8)
    assert value("prompt_tokens_total") == 200
    assert value("prompt_audio_seconds_total") == pytest.approx(200 / 75)
    steps = value("step_seconds_count")
    assert 30 <= steps == value("batch_size_count") <= 60  # the two choices may be in two workers
    for name in ("prefill_seconds", "time_to_first_audio_seconds", "real_time_factor"):
        assert value(f"{name}_count") == 1
    assert value("queue_seconds_count") == value("token_nll_count") == 2
    assert value("audio_decode_seconds_count") == 4
    assert value("batch_size_sum") == 60
    assert value("slots") == 32
    assert value("requests_running") == value("requests_waiting") == value("slots_used") == 0


def test_metrics_are_readable(service: Any) -> None:
    answer = service.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert all(name.startswith(("whispergpt_", "process_")) for name in families)
    if sys.platform == "linux":
        assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds"} <= set(families)
    (build,) = families["whispergpt_build_info"].samples
    assert build.labels["model"] == "random-tiny"


def test_keys(serve: Any, clip: bytes) -> None:
    service = serve(**KEYS)
    for path in ("/v1/models", "/docs", "/openapi.json"):
        assert service.get(path).status_code == 401
        assert service.get(path, headers={"authorization": "Bearer second"}).status_code == 200
        assert service.get(path, headers={"x-api-key": "first"}).status_code == 200
    for path in ("/continue", "/score", "/v1/audio/continuations", "/v1/audio/scores"):
        answer = service.post(path, clip, headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert service.get(path).status_code == 200


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "voilà", "鍵"])
def test_a_key_is_sent_as_utf_8(serve: Any, key: str) -> None:
    """`à` ends with a byte that is a blank in Latin-1."""
    service = serve(api_keys=[SecretStr(key)])
    for name, before in (("authorization", b"Bearer "), ("x-api-key", b"")):
        for given, status in ((key.encode(), 200), (key.encode()[:-1], 401), (key.encode("utf-16"), 401)):
            assert service.get("/v1/models", headers={name.encode(): before + given}).status_code == status


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/", "/v1/models", "/docs"])
def test_head_is_get_without_its_body(service: Any, path: str) -> None:
    got, told = service.get(path), service.wait(service.client.head(path))
    assert (told.status_code, told.content) == (200, b"")
    assert set(told.headers) == set(got.headers)


def test_head_where_nothing_can_be_got(service: Any) -> None:
    assert service.wait(service.client.head("/continue")).status_code == 405
    assert service.wait(service.client.head("/nowhere")).status_code == 404


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/", "/v1/models", "/docs", "/openapi.json", "/static/page.js",
                                  "/docs/files/swagger-ui.css", "/nowhere", "/continue", "/broken"])  # fmt: skip
def test_no_answer_is_framed_or_guessed_at(serve: Any, path: str) -> None:
    service = serve()

    async def broken() -> None:
        raise RuntimeError

    service.app.add_api_route("/broken", broken)
    headers = service.get(path).headers
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    (policy,) = headers.get_list("content-security-policy")
    assert "frame-ancestors 'none'" in policy


def test_memory_is_given_back_within_long_requests(serve: Any, clip: bytes) -> None:
    """Two hours that were scored at a time left 210 MiB in gaps, until they were done."""
    service = serve()
    engine = service.app.state.engine
    assert work_of(engine) == (before := work_of(engine))

    async def within() -> object:
        with engine.acquire():
            found = work_of(engine)
            await asyncio.sleep(0.001)
            assert found != work_of(engine)
            return found

    assert service.wait(within()) != before
    assert before != work_of(engine) == work_of(engine), "it was admitted; an idle server is left alone"


def test_metrics_know_every_route(service: Any) -> None:
    """Also those that are written later; and no name that a client makes up."""
    paths = service.app.openapi()["paths"]
    assert any("{" in path for path in paths)
    for path in paths:
        assert route_of(re.sub("{.*}", "some-name", path)) == path
    for path in ("/v1/models/", "/v1/models/a/b", "/v1/audio/prompts/a/b", "/a/v1/models/b", "a", "", "//", "/{model}"):
        assert route_of(path) == "other"
    before = service.value("requests_total", route="/v1/audio/prompts/{prompt_id}", outcome="client_error")
    service.get("/v1/audio/prompts/never-here")
    assert service.value("requests_total", route="/v1/audio/prompts/{prompt_id}", outcome="client_error") == before + 1


def test_probes_are_described_as_what_they_are(service: Any) -> None:
    """What takes no upload cannot be refused for one."""
    paths = service.app.openapi()["paths"]
    uploads = {"413", "415", "504", "507"}
    for path, methods in paths.items():
        for method, told in methods.items():
            known = uploads & told["responses"].keys()
            assert known == (uploads if "requestBody" in told else set()), (method, path)


def test_every_route_but_the_probes_wants_a_key(serve: Any) -> None:
    """Also those that are written later."""
    service = serve(**KEYS, open_metrics=False)
    paths = {(path, method) for path, methods in service.app.openapi()["paths"].items() for method in methods}
    probes = {"/livez", "/readyz"}
    assert {path for path, _ in paths} >= probes | {"/continue", "/score", "/metrics", "/v1/models"}
    for path, method in paths:
        status = service.wait(service.client.request(method, path)).status_code
        assert status == (200 if path in probes else 401), path


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Basic first", "first", "Bearer first second", "Bearer Fi"])
def test_bad_key(serve: Any, given: str) -> None:
    assert serve(**KEYS).get("/v1/models", headers={"authorization": given}).status_code == 401


def test_the_only_model_may_be_named(service: Any, bundle: Any, clip: bytes) -> None:
    """OpenAI's clients send its name, and retrieve it."""
    assert service.get(f"/v1/models/{bundle.name}").json() == service.get("/v1/models").json()["data"][0]
    for path in ("/continue", "/score", "/v1/audio/prompts"):
        assert service.post(path, clip, data={"model": bundle.name}).status_code == 200
        refused = service.post(path, clip, data={"model": "whisper-1"})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert refused.json()["error"]["param"] == "model"
    assert service.get("/v1/models/whisper-1").json()["error"]["code"] == "model_not_found"


def test_description_is_as_recorded() -> None:
    """A change of the contract is seen. To record a wanted one: RECORD_OPENAPI=1 pytest tests/app/test_main.py"""
    current = create_app(Settings()).openapi()
    current["info"].pop("version")
    if os.environ.get("RECORD_OPENAPI") == "1":
        OPENAPI.write_text(json.dumps(current, indent=1, sort_keys=True) + "\n")
    assert current == json.loads(OPENAPI.read_text())


def test_the_description_has_the_session(service: Any) -> None:
    """OpenAPI knows no WebSocket: its address is a GET that wants an upgrade, its events stand among the webhooks."""
    body = service.get("/openapi.json").json()
    assert set(body["paths"]["/v1/audio/session"]["get"]["responses"]) >= {"101", "426"}
    for name, kinds in (("client", 6), ("server", 9)):
        sent = body["webhooks"][f"session.{name}_event"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert len(sent["discriminator"]["mapping"]) == kinds
    bare = service.get("/v1/audio/session")
    assert (bare.status_code, bare.headers["upgrade"]) == (426, "websocket")
    assert bare.json()["error"]["code"] == "upgrade_required"


def test_description_names_every_field(service: Any) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    form = paths["/continue"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {
        "file", "model", "prompt", "continue_from", "continue_choice", "store", "seconds", "temperature", "top_k",
        "top_p", "keep_level", "seed", "n", "prompt_start", "prompt_end", "include_prompt", "response_format", "stream",
        "timeout_seconds",
    }  # fmt: skip
    assert "required" not in form, "a file, or what the server keeps"
    form = paths["/v1/audio/prompts"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "model", "prompt_start", "prompt_end", "timeout_seconds"}
    assert form["required"] == ["file"]
    form = paths["/score"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {
        "file", "model", "prompt_seconds", "window_start", "window_seconds", "window_step", "normalise_by", "detail",
        "top_logprobs", "response_format", "timeout_seconds",
    }  # fmt: skip


def test_docs_page(service: Any) -> None:
    answer = service.get("/docs")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert len(addresses) == 3, "script, style, icon"
    for address in addresses:
        assert not re.match("https?:|/", address), "it needs no network, and may lie below a proxy's folder"
        assert service.get(f"/{address}").status_code == 200
    assert "http" not in answer.headers["content-security-policy"]


def test_settings_from_environment_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "server.toml"
    file.write_text("queue = 3\nport = 9000\nquue = 4\n")
    monkeypatch.setenv("WHISPERGPT_CONFIG", str(file))
    monkeypatch.setenv("WHISPERGPT_PORT", "9001")
    monkeypatch.setenv("WHISPERGPT_API_KEYS", '["one"]')
    monkeypatch.setenv("WHISPERGPT_TREADS", "2")
    settings = load_settings(host="0.0.0.0", slots=None)
    warn_of_unknown_names()
    assert (settings.queue, settings.port, settings.host, settings.slots) == (3, 9001, "0.0.0.0", None)
    assert [key.get_secret_value() for key in settings.api_keys] == ["one"]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("WHISPERGPT_TREADS" in message for message in warned)
    assert any("quue" in message for message in warned)
    assert len(warned) == 2


def test_missing_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPERGPT_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ValueError, match="no file"):
        load_settings()


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"queue": -1}, {"threads": 0}, {"max_seconds": 0}, {"api_keys": [SecretStr(" ")]}], ids=str
)
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_keys_are_not_shown() -> None:
    assert "first" not in repr(Settings(**KEYS))
