"""A client that openapi-python-client generates from /openapi.json works against the server."""

import base64
import importlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.support.process import Server

GENERATOR = shutil.which("openapi-python-client")
NAME = "generated_for_whisper_gpt"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        GENERATOR is None,
        reason="needs the generator on PATH, in an environment of its own: pipx install openapi-python-client",
    ),
]


@pytest.fixture(scope="module")
def url(saved_bundle: Path) -> Iterator[str]:
    server = Server(saved_bundle)
    yield f"http://127.0.0.1:{server.port}"
    server.close()


@pytest.fixture(scope="module")
def package(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    assert GENERATOR is not None
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(httpx.get(url + "/openapi.json").text)
    (folder / "config.json").write_text(json.dumps({"package_name_override": NAME, "post_hooks": []}))
    command = [GENERATOR, "generate", "--path", "openapi.json", "--config", "config.json", "--meta", "none",
               "--output-path", NAME, "--fail-on-warning"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield folder / NAME
    sys.path.remove(str(folder))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{NAME}.{name}")


def form(route: str) -> Any:
    """The class of a route's form: the generator makes up the name."""
    (found,) = [value for key, value in vars(module("models")).items() if key.lower().endswith(route + "form")]
    return found


def test_it_continues_scores_and_keeps(url: str, package: Path, clip: bytes) -> None:
    with module("client").Client(base_url=url) as client:
        use(client, clip)


def use(client: Any, clip: bytes) -> None:
    file, unset = module("types").File, module("types").UNSET

    def upload() -> Any:
        return file(payload=io.BytesIO(clip), file_name="clip.flac", mime_type="audio/flac")

    kept = module("api.prompts.post_prompt_v1_audio_prompts_post").sync(
        client=client, body=form("promptspostprompt")(file=upload())
    )
    assert kept.tokens == 100 and kept.id.startswith("prompt-")
    post = module("api.continue_.post_continue_continue_post").sync
    body = form("continuepostcontinue")
    with_file = post(client=client, body=body(file=upload(), seconds=0.4, seed=7))
    without = post(client=client, body=body(prompt=kept.id, seconds=0.4, seed=7, file=unset))
    assert base64.b64decode(with_file.choices[0].audio.data) == base64.b64decode(without.choices[0].audio.data)
    assert len(with_file.choices[0].tokens) == 30
    scored = module("api.score.post_score_score_post").sync(
        client=client, body=form("scorepostscore")(file=[upload(), upload()])
    )
    assert len(scored.results) == 2 and scored.results[0].nll == scored.results[1].nll
    refused = post(client=client, body=body(prompt="prompt-gone", seconds=0.4, file=unset))
    assert refused.error.code == "prompt_not_found"
    assert module("api.server.models_v1_models_get").sync(client=client).data[0].preset == "tiny"
