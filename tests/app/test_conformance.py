"""What the description promises, by schemathesis: requests made from it, with real audio, and answers held to it."""

from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig

from app.main import create_app
from app.settings import Settings
from tests.support.service import Service, sound

QUICK, LONG = 15, 300  # requests of each operation and mode
# what a test can wait for; and a request that gives itself no time is answered with 504, as it wished
NARROWED = {"seconds": {"maximum": 1.0}, "timeout_seconds": {"minimum": 60.0}}
KINDS = {"audio/wav": "WAV", "audio/flac": "FLAC", "audio/ogg": "OGG", "audio/mpeg": "MP3", "audio/aiff": "AIFF"}
ROUTES = ["POST /continue", "POST /score", "POST /v1/audio/prompts"]
OTHERS = ["GET /livez", "GET /readyz", "GET /metrics", "GET /v1/models"]
OF_IDS = ["GET /v1/audio/prompts/{prompt_id}", "DELETE /v1/audio/prompts/{prompt_id}", "GET /v1/models/{model}"]
MODES = {"good": GenerationMode.POSITIVE, "bad": GenerationMode.NEGATIVE}


@cache
def clips(form: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [
        sound((0.2 * rng.standard_normal(round(seconds * rate))).astype(np.float32), rate, form)
        for seconds, rate in [(0.3, 24_000), (1.0, 44_100)]
    ]


@cache
def description(mode: GenerationMode) -> Any:
    """The application's own, as schemathesis reads it; for good requests with a few ranges narrowed."""
    for name, form in KINDS.items():
        schemathesis.openapi.media_type(name, st.sampled_from(clips(form)))
    body = create_app(Settings()).openapi()
    for route in ROUTES if mode is GenerationMode.POSITIVE else []:
        form = body["paths"][route.split()[1]]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        for name in NARROWED.keys() & form["properties"].keys():
            form["properties"][name] |= NARROWED[name]
    # Rules between fields, and between a field and its clip, stand in the description in words alone: 413, 422. So
    # does which models and prompts there are: 404.
    accepted = {"expected-statuses": ["200", "404", "413", "422"]}
    config = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": accepted}})
    schema = schemathesis.openapi.from_dict(body, config=config)

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        """A clip where the description wants a list of clips: a media type's strategy makes one."""
        inner = getattr(body, "body", body)
        many = context.operation is not None and context.operation.path == "/score"
        if many and isinstance(inner, dict) and isinstance(inner.get("file"), bytes):
            inner["file"] = [inner["file"]]
        return body

    return schema


def ask(service: Service, case: Case[Any]) -> httpx.Response:
    """Sends a case to the application under test, as it would go over a wire."""
    sent = requests.Request(**case.as_transport_kwargs(base_url="http://test")).prepare()
    content = sent.body.encode() if isinstance(sent.body, str) else sent.body
    assert sent.method and sent.url and isinstance(content, bytes | None)
    headers = [
        (name.encode(), value.encode() if isinstance(value, str) else value) for name, value in sent.headers.items()
    ]
    return service.wait(service.client.request(sent.method, sent.url, headers=headers, content=content))


def conforms(service: Service, label: str, mode: GenerationMode, count: int) -> set[int]:
    """Holds so many answers of an operation to the description; the statuses that were seen."""
    (operation,) = (found.ok() for found in description(mode).get_all_operations() if found.ok().label == label)
    seen: set[int] = set()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Case[Any]) -> None:
        answer = ask(service, case)
        seen.add(answer.status_code)
        case.validate_response(answer)

    holds()
    return seen


@pytest.mark.parametrize("label", OTHERS)
def test_what_takes_nothing_conforms(service: Service, label: str) -> None:
    assert conforms(service, label, GenerationMode.POSITIVE, 1) == {200}


@pytest.mark.parametrize("label", OF_IDS)
def test_ids_that_nobody_has_conform(service: Service, label: str) -> None:
    assert conforms(service, label, GenerationMode.POSITIVE, QUICK) == {404}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("label", ROUTES)
@pytest.mark.parametrize("count", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_forms_conform(service: Service, label: str, mode: str, count: int) -> None:
    seen = conforms(service, label, MODES[mode], count)
    assert 200 in seen if mode == "good" else seen and max(seen) < 500 and 200 not in seen
