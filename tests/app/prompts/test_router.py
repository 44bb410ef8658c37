"""/v1/audio/prompts, and /continue without an upload: the same bytes as with it."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import app.engine.engine as engines
from model.inference.torch_backend import TorchBackend
from tests.support.service import Service, serving

KEYS = {"api_keys": {"alice": "first", "bob": "second"}}
ALICE, BOB = {"x-api-key": "first"}, {"authorization": "Bearer second"}
GOOD = {"seconds": "0.4", "seed": "7"}
PROMPTS = "/v1/audio/prompts"


@pytest.fixture(scope="module", params=["compiled", "torch"])
def either(request: pytest.FixtureRequest, bundle: Any) -> Iterator[Service]:
    """A service that steps with the compiled backend, and one that steps with torch's."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(engines, "backend_for", TorchBackend)
        with serving(bundle, slots=4) as running:
            yield running


def form(**fields: str) -> dict[str, Any]:
    """A multipart form that has no file."""
    return {"files": {name: (None, value) for name, value in fields.items()}}


def gone_on(service: Service, path: str = "/continue", headers: Any = None, **fields: str) -> Any:
    return service.wait(service.client.post(path, headers=headers, **form(**fields)))


def kept(service: Service, clip: bytes, headers: Any = None, **fields: str) -> Any:
    answer = service.post(PROMPTS, clip, data=fields, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: Any, status: int = 404, code: str = "prompt_not_found", param: str | None = None) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert param is None or answer.json()["error"]["param"] == param


@pytest.mark.parametrize("fields", [
    {}, {"n": "3"}, {"include_prompt": "true", "response_format": "wav"}, {"temperature": "0.8", "top_k": "50"},
    {"stream": "true", "response_format": "pcm"},
    {"stream": "true", "response_format": "wav", "include_prompt": "true"},
], ids=str)  # fmt: skip
def test_the_same_bytes_as_with_the_file(either: Service, clip: bytes, fields: dict[str, str]) -> None:
    """Again and again: what is made from a prompt leaves it as it was."""
    name = kept(either, clip)["id"]
    with_file = either.post("/continue", clip, data=GOOD | fields)
    for _ in range(2):
        without = gone_on(either, **GOOD, **fields, prompt=name)
        assert without.status_code == 200, without.text
        if fields.get("response_format"):
            assert without.content == with_file.content
            assert without.headers["x-whispergpt-prompt-nll"] == with_file.headers["x-whispergpt-prompt-nll"]
        else:
            one, other = without.json(), with_file.json()
            assert one["choices"] == other["choices"] and one["prompt"] == other["prompt"]
            assert one["timings"]["prefill_seconds"] == 0.0 < other["timings"]["prefill_seconds"]


def test_a_part_of_a_file(service: Service, clip: bytes) -> None:
    part = {"prompt_start": "0.3", "prompt_end": "0.9"}
    body = kept(service, clip, **part)
    assert body["tokens"] == 45 and body["seconds"] == 0.6
    made = gone_on(service, **GOOD, prompt=body["id"]).json()
    assert made["choices"] == service.post("/continue", clip, data=GOOD | part).json()["choices"]
    assert made["prompt"]["nll"] == body["nll"]


def test_parts_are_the_whole(either: Service, clip: bytes) -> None:
    """With the same seed, going on from a continuation is the continuation uninterrupted."""
    whole = either.post("/continue", clip, data={"seconds": "1.2", "seed": "7", "response_format": "pcm"}).content
    first = either.post("/continue", clip, data=GOOD | {"response_format": "pcm"})
    second = gone_on(either, **GOOD, response_format="pcm", continue_from=first.headers["x-whispergpt-id"])
    third = gone_on(either, **GOOD, continue_from=second.headers["x-whispergpt-id"], stream="true")
    events = [json.loads(line[6:]) for line in third.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["prompt"]["tokens"] == 100 + 30 + 30
    last = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert first.content + second.content + last == whole


def test_each_choice_can_be_gone_on_from(service: Service, clip: bytes) -> None:
    made = service.post("/continue", clip, data=GOOD | {"n": "3"}).json()
    whole = service.post("/continue", clip, data=GOOD | {"n": "3", "seconds": "0.8"}).json()
    first = gone_on(service, **GOOD, continue_from=made["id"]).json()
    assert first["choices"][0]["tokens"] == whole["choices"][0]["tokens"][30:]
    nlls = []
    for choice in range(3):
        again = gone_on(service, **GOOD, continue_from=made["id"], continue_choice=str(choice)).json()
        own = [made["prompt"]["nll"]] * 100 + [made["choices"][choice]["nll"]] * 30
        assert again["prompt"]["nll"] == pytest.approx(np.mean(own), abs=1e-5)
        nlls.append(again["prompt"]["nll"])
    assert len(set(nlls)) == 3
    refused(
        gone_on(service, **GOOD, continue_from=made["id"], continue_choice="3"), 422, "invalid_parameter",
        "continue_choice",
    )  # fmt: skip


def test_what_is_told_of_the_file_is_told_again(service: Service, to_file: Callable[..., bytes]) -> None:
    silence = to_file(np.zeros(24_000, np.float32))
    body = kept(service, silence)
    assert [one["code"] for one in body["warnings"]] == ["silent_clip"]
    assert gone_on(service, **GOOD, prompt=body["id"]).json()["warnings"] == body["warnings"]


def test_it_tells_for_how_long_it_is_kept(serve: Callable[..., Service], clip: bytes) -> None:
    service = serve(prompts_seconds=40)
    body = kept(service, clip)
    assert body["object"] == "audio.prompt" and body["model"] == service.app.state.engine.bundle.name
    assert time.time() + 20 < body["expires_at"] <= time.time() + 40
    again = service.get(f"{PROMPTS}/{body['id']}").json()
    assert again | {"expires_at": 0} == body | {"expires_at": 0}
    assert again["expires_at"] >= body["expires_at"]


def test_gone_is_a_404(service: Service, clip: bytes) -> None:
    name = kept(service, clip)["id"]
    deleted = service.wait(service.client.delete(f"{PROMPTS}/{name}"))
    assert deleted.json() == {"id": name, "object": "audio.prompt.deleted", "deleted": True}
    refused(service.wait(service.client.delete(f"{PROMPTS}/{name}")))
    refused(service.get(f"{PROMPTS}/{name}"))
    refused(gone_on(service, **GOOD, prompt=name))
    made = service.post("/continue", clip, data=GOOD).json()["id"]
    refused(gone_on(service, **GOOD, prompt=made))
    assert service.wait(service.client.delete(f"{PROMPTS}/{made}")).status_code == 200
    refused(gone_on(service, **GOOD, continue_from=made))
    unkept = service.post("/continue", clip, data=GOOD | {"store": "false"}).json()["id"]
    refused(gone_on(service, **GOOD, continue_from=unkept))


def test_another_key_finds_nothing(serve: Callable[..., Service], clip: bytes) -> None:
    service = serve(**KEYS)
    name = kept(service, clip, headers=ALICE)["id"]
    made = gone_on(service, **GOOD, prompt=name, headers=ALICE).json()["id"]
    for fields in ({"prompt": name}, {"continue_from": made}):
        refused(gone_on(service, **GOOD, **fields, headers=BOB))
        assert gone_on(service, **GOOD, **fields, headers=ALICE).status_code == 200
    refused(service.wait(service.client.delete(f"{PROMPTS}/{name}", headers=BOB)))
    assert service.post(PROMPTS, clip).status_code == 401


def test_ids_are_nobodys_to_choose(serve: Callable[..., Service], clip: bytes) -> None:
    """Nor to guess: a client's x-request-id, which others may see or send as well, tells nothing of them."""
    service = serve()
    sent = {"x-request-id": "mine"}
    fields = GOOD | {"response_format": "pcm"}
    names = [service.post("/continue", clip, data=fields, headers=sent).headers["x-whispergpt-id"] for _ in range(2)]
    assert len(set(names)) == 2 and not any("mine" in name or len(name) < 20 for name in names)
    assert service.value("prompts_kept", kind="continuation") == 2
    refused(gone_on(service, **GOOD, continue_from="cont-mine"))


def test_one_key_leaves_the_others_their_share(serve: Callable[..., Service], clip: bytes) -> None:
    service = serve(**KEYS, prompts_mib=1.0)
    name = kept(service, clip, headers=ALICE)["id"]
    for _ in range(12):
        kept(service, clip, headers=BOB)
        assert service.post("/continue", clip, data=GOOD, headers=BOB).status_code == 200
    assert gone_on(service, **GOOD, prompt=name, headers=ALICE).status_code == 200


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells a process's maps")
def test_a_kept_prompt_holds_no_descriptor(service: Service, clip: bytes) -> None:
    """There may be thousands of prompts, and a process may have a thousand files open."""
    maps = Path("/proc/self/maps")
    before = maps.read_text().count("/memfd:samples")
    for _ in range(5):
        kept(service, clip)
    assert maps.read_text().count("/memfd:samples") <= before


def test_room_is_bounded(serve: Callable[..., Service], clip: bytes) -> None:
    service = serve(prompts_mib=1.0)
    names = [kept(service, clip)["id"] for _ in range(12)]
    assert service.value("prompts_kept_bytes") <= 2**20
    assert 0 < service.value("prompts_kept", kind="prompt") < 12
    refused(gone_on(service, **GOOD, prompt=names[0]))
    assert gone_on(service, **GOOD, prompt=names[-1]).status_code == 200


def test_a_server_may_keep_nothing(serve: Callable[..., Service], clip: bytes) -> None:
    service = serve(prompts_mib=0)
    refused(service.post(PROMPTS, clip), 507, "storage_full")
    made = service.post("/continue", clip, data=GOOD).json()["id"]
    refused(gone_on(service, **GOOD, continue_from=made))


@pytest.mark.parametrize(("fields", "param"), [
    ({}, "file"), ({"prompt": "a", "continue_from": "b"}, "continue_from"),
    ({"prompt": "a", "prompt_end": "2"}, "prompt_start"), ({"continue_choice": "1"}, "continue_choice"),
    ({"continue_from": "a", "include_prompt": "true"}, "include_prompt"),
], ids=str)  # fmt: skip
def test_what_does_not_fit_together(service: Service, fields: dict[str, str], param: str) -> None:
    refused(gone_on(service, seconds="0.4", **fields), 422, "invalid_parameter", param)


def test_a_file_and_an_id_are_one_too_many(service: Service, clip: bytes) -> None:
    refused(service.post("/continue", clip, data=GOOD | {"prompt": "a"}), 422, "invalid_parameter", "file")


def test_no_room_and_bad_clips_are_told_as_everywhere(
    service: Service, clip: bytes, to_file: Callable[..., bytes]
) -> None:
    refused(service.post(PROMPTS), 400, "malformed_form")
    refused(service.post(PROMPTS, b"no audio at all"), 415, "unsupported_format", "file")
    refused(service.post(PROMPTS, to_file(np.ones(1_000, np.float32))), 422, "audio_too_short", "file")
    refused(service.post(PROMPTS, clip, data={"prompt_start": "9999"}), 413, "audio_too_long", "prompt_start")
