"""OpenAI's own client against the server: it lists and retrieves models, and sees our errors typed.

Its package is not among the tools of the tests: `pip install openai` for this one, which is slow.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import Server

KEY = "sesame"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def openai() -> Any:
    return pytest.importorskip("openai", reason="pip install openai")


@pytest.fixture(scope="module")
def url(saved_bundle: Path) -> Iterator[str]:
    server = Server(saved_bundle, "--api-keys", KEY)
    yield f"http://127.0.0.1:{server.port}/v1"
    server.close()


def test_models(openai: Any, url: str, saved_bundle: Path) -> None:
    with openai.OpenAI(base_url=url, api_key=KEY) as client:
        (only,) = client.models.list()
        assert (only.object, only.id) == ("model", "random-tiny") and only.sample_rate == 24_000
        assert only.owned_by == "whisper-gpt" and only.created == int((saved_bundle / "config.json").stat().st_mtime)
        assert client.models.retrieve(only.id) == only


def test_errors_are_typed(openai: Any, url: str) -> None:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("none")
        error = missing.value
        assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
        assert "none" in error.message and error.request_id
        with pytest.raises(openai.BadRequestError) as no_form:
            client.post("/audio/prompts", cast_to=object, body={})
        assert no_form.value.code == "malformed_form"
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            client.post(
                "/audio/prompts", cast_to=object, body={"prompt_start": -1}, files={"file": ("a.wav", b"RIFF")},
                options={"headers": {"Content-Type": "multipart/form-data"}},
            )  # fmt: skip
        assert (invalid.value.code, invalid.value.param) == ("invalid_parameter", "prompt_start")
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"
