"""Several bundles in one server: each as if it were alone; they come and go while others run."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from app.engine.worker import DecodeWorkers
from app.errors import UserError
from app.metrics import MODEL_LABELS, OTHER_MODELS, Metrics
from app.models import catalog, registry
from model.checkpoint import CODEC, BundleError, random_bundle, save_bundle
from tests.support.engine import Visitor, in_background
from tests.support.memory import bytes_kept
from tests.support.process import Server
from tests.support.service import Service, serving, sound
from tests.support.signals import enliven
from tests.support.waiting import until
from tests.support.websocket import Refused, Socket

ADMIN = {"authorization": "Bearer root"}
WAV: dict[str, Any] = {"seconds": "0.4", "seed": "7", "response_format": "wav"}
LONG: dict[str, Any] = {"seconds": "900", "timeout_seconds": "100", "stream": "true", "response_format": "pcm"}
NAMES = ("first", "second")


def save(name: str, seed: int, signal: Tensor, folder: Path) -> None:
    bundle = random_bundle(seed=seed)
    bundle.name = name
    enliven(bundle.codec, signal)
    save_bundle(bundle, folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech_like: Tensor) -> Path:
    """Two bundles, and `third` beside them; nobody may change it."""
    made = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(NAMES):
        save(name, seed, speech_like, made / "all")
    save("third", 2, speech_like, made)
    return made / "all"


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[Service]:
    """A server of the folder's two bundles; tests leave it as they found it."""
    with serving(bundle=folder, admin_keys="root", threads=1, max_seconds=1000) as service:
        yield service


@pytest.fixture(scope="module")
def alone(folder: Path, clip: bytes) -> dict[str, list[Any]]:
    """What a server of each bundle by itself answers."""
    found = {}
    for name in NAMES:
        with serving(bundle=folder / name, threads=1) as service:
            found[name] = answers(service, clip)
    return found


def workers_of(service: Service, name: str) -> DecodeWorkers:
    found: dict[Any, DecodeWorkers] = service.app.state.engine._workers
    return next(workers for model, workers in found.items() if model.name == name)


def answers(service: Service, clip: bytes, **more: str) -> list[Any]:
    made = service.post("/continue", clip, data=WAV | more)
    scored = service.post("/score", clip, data={"detail": "tokens"} | more)
    assert made.status_code == scored.status_code == 200, (made.text, scored.text)
    return [made.content, scored.json()]


def states(service: Service) -> dict[str, bool]:
    return {one["id"]: one["loaded"] for one in service.get("/v1/admin/models", headers=ADMIN).json()["data"]}


def load(service: Service, name: str) -> Any:
    return service.wait(service.client.post("/v1/admin/models", json={"model": name}, headers=ADMIN))


def unload(service: Service, name: str, **query: Any) -> Any:
    return service.wait(service.client.delete(f"/v1/admin/models/{name}", params=query, headers=ADMIN))


def gone_on(service: Service, **fields: str) -> Any:
    """What is made from what is kept: a form without a file."""
    return service.wait(service.client.post("/continue", files={name: (None, one) for name, one in fields.items()}))


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_each_answers_as_alone(both: Service, alone: dict[str, list[Any]], clip: bytes) -> None:
    """Also beside each other, in the same steps' time."""
    assert alone["first"][0] != alone["second"][0]
    for name in NAMES:
        assert answers(both, clip, model=name) == alone[name]
        assert alone[name][1]["model"] == name
    assert answers(both, clip) == alone["first"], "the first by name is served by default"
    together = [(name, in_background(both, "/continue", clip, **WAV, model=name)) for name in NAMES * 3]
    assert all(sent.result(30).content == alone[name][0] for name, sent in together)


def test_they_are_listed(both: Service) -> None:
    told = both.get("/v1/models").json()["data"]
    assert [(one["id"], one["loaded"]) for one in told] == [("first", True), ("second", True)]
    assert told[0]["hashes"] != told[1]["hashes"]
    assert both.get("/v1/models/second").json() == told[1]


@pytest.mark.parametrize("path", ["/continue", "/score", "/v1/audio/prompts"])
def test_an_unknown_one_is_refused(both: Service, clip: bytes, path: str) -> None:
    answer = both.post(path, clip, data={"model": "fourth"})
    assert code(answer) == (404, "model_not_found")
    assert "'first', 'second'" in answer.json()["error"]["message"]


def test_what_is_kept_belongs_to_the_model_that_made_it(both: Service, clip: bytes) -> None:
    prompt = both.post("/v1/audio/prompts", clip, data={"model": "second"}).json()
    assert prompt["model"] == both.get(f"/v1/audio/prompts/{prompt['id']}").json()["model"] == "second"
    whole = both.post("/continue", clip, data={"model": "second", "seconds": "0.4", "seed": "7"}).json()
    models: list[dict[str, str]] = [{}, {"model": "second"}]
    for model in models:
        made = gone_on(both, prompt=prompt["id"], seconds="0.4", seed="7", **model).json()
        assert made["model"] == "second" and made["choices"] == whole["choices"]
    for field, name in (("prompt", prompt["id"]), ("continue_from", whole["id"])):
        answer = gone_on(both, **{field: name, "seconds": "0.2", "model": "first"})
        assert code(answer) == (422, "invalid_parameter")
        assert answer.json()["error"]["message"].startswith("model: 'second' made this")
        assert gone_on(both, **{field: name, "seconds": "0.2"}).json()["model"] == "second"


def test_a_session_is_with_one_of_them(both: Service, speech: Any) -> None:
    pcm = np.round(speech * 32767).astype("<i2")
    with pytest.raises(Refused) as refused:
        Socket(both, query="model=fourth")
    assert (refused.value.status, refused.value.body["error"]["code"]) == (404, "model_not_found")
    socket = Socket(both, query="model=second")
    assert socket.created["session"]["model"] == "second"
    assert code(unload(both, "second")) == (409, "model_in_use")
    socket.send_bytes(pcm.tobytes())
    socket.send("input_audio_buffer.commit")
    _, committed = socket.until("input_audio_buffer.committed")
    socket.send("response.create", response={"seconds": 0.4, "seed": 7})
    deltas, _ = socket.until("response.done")
    tokens = [token for event in deltas[1:] for token in event["tokens"]]
    whole = both.post("/continue", sound(pcm), data={"model": "second", "seconds": "0.4", "seed": "7"}).json()
    assert tokens == whole["choices"][0]["tokens"]
    kept = gone_on(both, prompt=committed["prompt"]["id"], seconds="0.4", seed="7").json()
    assert (kept["model"], kept["choices"][0]["tokens"]) == ("second", tokens)
    socket.leave()
    assert unload(both, "second", wait_seconds=10).status_code == 200
    assert load(both, "second").status_code == 201


def test_one_budget_of_slots(folder: Path, clip: bytes) -> None:
    """Two slots: choices of both models take them in the order in which they came, and those beyond wait."""
    with serving(bundle=folder, threads=1, slots=2, max_seconds=1000) as service:
        assert service.value("slots") == 2
        first, second = (Visitor(service, "/continue", clip, model=name, **LONG) for name in NAMES)
        until(lambda: service.value("slots_used") == 2)
        assert [service.value("model_slots_used", model=name) for name in NAMES] == [1, 1]
        waits = [in_background(service, "/continue", clip, **WAV, model=name) for name in NAMES]
        until(lambda: service.value("requests_running") == 4)
        assert service.value("slots_used") == 2
        second.leave()
        assert [one.result(30).status_code for one in waits] == [200, 200]
        first.leave()
        until(lambda: service.value("slots_used") == 0)


def test_who_gets_no_slot_waits_and_does_not_look(folder: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another model has all slots, the thread of one that has none would take a core by asking for them."""
    looks = 0
    look = DecodeWorkers._next_sequences

    def counted(workers: DecodeWorkers, index: int, pause: float) -> Any:
        nonlocal looks
        looks += workers is second
        return look(workers, index, pause)

    with serving(bundle=folder, threads=1, slots=1, max_seconds=1000) as service:
        second = workers_of(service, "second")
        visitor = Visitor(service, "/continue", clip, model="first", **LONG)
        until(lambda: service.value("slots_used") == 1)
        waits = in_background(service, "/continue", clip, **WAV, model="second")
        until(lambda: len(second._waiting) == 1)
        monkeypatch.setattr(DecodeWorkers, "_next_sequences", counted)
        steps = service.value("step_seconds_count")
        until(lambda: service.value("step_seconds_count") > steps + 100)
        assert looks <= 100, "not even once a step"
        visitor.leave()
        assert waits.result(30).status_code == 200


def test_a_model_that_goes_in_the_middle_of_a_step_gives_its_slots_back(
    folder: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a request that was cancelled just before: its rows were still in that step."""
    inside, go_on = threading.Event(), threading.Event()
    step = DecodeWorkers._step

    def held(workers: DecodeWorkers, state: Any) -> None:
        step(workers, state)
        if workers is second and state.rows:  # at its end
            inside.set()
            go_on.wait(30)

    with serving(bundle=folder, admin_keys="root", threads=1, max_seconds=1000) as service:
        second = workers_of(service, "second")
        monkeypatch.setattr(DecodeWorkers, "_step", held)
        visitor = Visitor(service, "/continue", clip, model="second", **LONG)
        assert inside.wait(30)
        assert service.value("slots_used") == 1
        visitor.leave()
        url = "/v1/admin/models/second"
        asked = asyncio.run_coroutine_threadsafe(service.client.delete(url, headers=ADMIN), service.loop)
        until(second._stopped.is_set)
        go_on.set()
        assert asked.result(30).status_code == 200
        assert service.value("slots_used") == 0


def test_they_come_and_go_under_a_stream(both: Service, folder: Path, alone: dict[str, list[Any]], clip: bytes) -> None:
    """Which is the same to the byte, and of which nobody else's coming makes an error."""

    def stream() -> Any:
        return in_background(
            both, "/continue", clip, seconds="30", seed="3", stream="true", response_format="pcm", model="first"
        )

    plain, before = stream().result(60).content, both.value("model_unloads_total", model="second", reason="asked")
    sent = stream()
    until(lambda: both.value("model_slots_used", model="first") == 1)
    for _ in range(2):
        gone = unload(both, "second")
        assert gone.json() == {"id": "second", "object": "admin.model.deleted", "deleted": True}
        assert code(both.post("/continue", clip, data={"model": "second"})) == (404, "model_not_found")
        assert code(unload(both, "second")) == (404, "model_not_found")
        assert load(both, "second").status_code == 201
        assert both.post("/continue", clip, data=WAV | {"model": "second"}).content == alone["second"][0]
    assert load(both, "second").status_code == 200, "it was there"
    assert sent.result(60).content == plain
    assert both.value("model_loaded", model="second") == 1
    assert both.value("model_unloads_total", model="second", reason="asked") == before + 2


def test_who_is_asked_for_stays(both: Service, clip: bytes) -> None:
    """Until its requests have ended; meanwhile it takes no others."""
    visitor = Visitor(both, "/continue", clip, model="second", **LONG)
    until(lambda: both.value("model_slots_used", model="second") == 1)
    assert code(unload(both, "second")) == (409, "model_in_use")
    assert code(unload(both, "second", wait_seconds=0.05)) == (409, "model_in_use")
    assert states(both) == {"first": True, "second": True}
    going = asyncio.run_coroutine_threadsafe(
        both.client.delete("/v1/admin/models/second", params={"wait_seconds": 30}, headers=ADMIN), both.loop
    )
    until(lambda: list(states(both)) == ["first"])
    assert code(both.post("/continue", clip, data={"model": "second"})) == (404, "model_not_found")
    assert code(load(both, "second")) == (409, "model_in_use")
    visitor.leave()
    assert going.result(30).status_code == 200
    assert load(both, "second").status_code == 201
    assert code(unload(both, "first")) == (409, "model_in_use")


def test_what_an_unloaded_model_made_is_forgotten(both: Service, clip: bytes) -> None:
    prompt = both.post("/v1/audio/prompts", clip, data={"model": "second"}).json()["id"]
    other = both.post("/v1/audio/prompts", clip).json()["id"]
    unload(both, "second")
    load(both, "second")
    assert code(both.get(f"/v1/audio/prompts/{prompt}")) == (404, "prompt_not_found")
    assert both.get(f"/v1/audio/prompts/{other}").status_code == 200


def test_only_bundles_of_the_folders_are_loaded(both: Service, folder: Path) -> None:
    """By their names: `third` lies beside the folder, and comes in only when somebody puts it there."""
    for name in ("third", str(folder.parent / "third"), "../third", "all/../../third"):
        answer = load(both, name)
        assert code(answer) == (404, "model_not_found") and str(folder) not in answer.text
    for wrong in ({}, {"model": ""}, {"model": "second", "path": "x"}, {"model": "x" * 5000}, [1]):
        answer = both.wait(both.client.post("/v1/admin/models", json=wrong, headers=ADMIN))
        assert code(answer) == (422, "invalid_parameter")
    shutil.copytree(folder.parent / "third", folder / "third")
    try:
        assert load(both, "third").json()["loaded"] is True
        assert "third" in [one["id"] for one in both.get("/v1/models").json()["data"]]
        assert unload(both, "third").status_code == 200
    finally:
        shutil.rmtree(folder / "third")


def test_other_weights_under_the_same_name(folder: Path, tmp_path: Path, clip: bytes, speech_like: Tensor) -> None:
    """What the old ones have made is not gone on from; a bundle that is broken is told of without its place."""
    shutil.copytree(folder, tmp_path / "all")
    times = Times()
    with serving(bundle=tmp_path / "all", admin_keys="root", threads=1, model_idle_seconds=60) as service:
        times.of(service)
        prompt = service.post("/v1/audio/prompts", clip, data={"model": "second"}).json()["id"]
        times.idle(service, 61)
        save("second", 5, speech_like, tmp_path / "all")
        answer = gone_on(service, prompt=prompt, seconds="0.2")
        assert code(answer) == (404, "prompt_not_found") and "other weights" in answer.text
        times.idle(service, 61)
        (tmp_path / "all" / "second" / CODEC).write_bytes(b"damaged")
        for why in ("is broken", "a moment ago"):
            answer = service.post("/continue", clip, data={"model": "second"})
            assert code(answer) == (503, "not_ready") and why in answer.text and str(tmp_path) not in answer.text
            assert int(answer.headers["retry-after"]) > 0
        assert service.value("model_loads_total", model="second", outcome="failed") == 1, "it is not read each time"
        assert service.get("/readyz").status_code == 200
        save("second", 5, speech_like, tmp_path / "all")
        times.now += registry.FAILED_SECONDS
        assert service.post("/continue", clip, data=WAV | {"model": "second"}).status_code == 200


class Times:
    """A clock of the test's own for the registry of a service."""

    now = 1000.0

    def of(self, service: Service) -> None:
        service.app.state.models._clock = lambda: self.now
        for served in service.app.state.models.all():
            served.used = self.now

    def idle(self, service: Service, seconds: float) -> None:
        """So much time goes by, and the models are looked at."""
        self.now += seconds
        service.wait(service.app.state.models.unload_idle())


def test_who_is_idle_is_unloaded_and_comes_again(folder: Path, alone: dict[str, list[Any]], clip: bytes) -> None:
    times = Times()
    with serving(bundle=folder, admin_keys="root", threads=1, model_idle_seconds=60, max_seconds=1000) as service:
        times.of(service)
        prompt = service.post("/v1/audio/prompts", clip, data={"model": "second"}).json()["id"]
        times.idle(service, 59)
        assert states(service) == {"first": True, "second": True}
        visitor = Visitor(service, "/continue", clip, model="second", **LONG)
        until(lambda: service.value("model_slots_used", model="second") == 1)
        times.idle(service, 600)
        assert states(service) == {"first": True, "second": True}, "a request is for it, and the first one stays"
        visitor.leave()
        times.idle(service, 61)
        assert states(service) == {"first": True, "second": False}
        (_, second) = service.get("/v1/models").json()["data"]
        assert (second["id"], second["loaded"]) == ("second", False)
        assert service.value("model_bytes", model="second") == 0
        assert service.get("/readyz").status_code == 200
        # its prompts have stayed: the same weights come again
        several = [in_background(service, "/continue", clip, **WAV, model="second") for _ in range(3)]
        assert gone_on(service, prompt=prompt, **WAV).content == alone["second"][0]
        assert [one.result(30).content for one in several] == [alone["second"][0]] * 3
        assert service.value("model_loads_total", model="second", outcome="ok") == 1, "they waited for one loading"


def test_a_load_that_takes_long_is_not_waited_for(folder: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it end with who asked for it."""
    monkeypatch.setattr(registry, "LOAD_WAIT_SECONDS", 0.0)
    times = Times()
    with serving(bundle=folder, admin_keys="root", threads=1, model_idle_seconds=60) as service:
        times.of(service)
        times.idle(service, 61)
        answer = service.post("/continue", clip, data={"model": "second"})
        assert code(answer) == (503, "not_ready") and answer.headers["retry-after"] == "5"
        until(lambda: states(service) == {"first": True, "second": True})
        assert service.post("/continue", clip, data=WAV | {"model": "second"}).status_code == 200


def test_memory_has_a_bound(folder: Path, tmp_path: Path, clip: bytes) -> None:
    """With room for two of three, who was not asked for longest makes room; who is asked for does not."""
    shutil.copytree(folder, tmp_path / "all")
    shutil.copytree(folder.parent / "third", tmp_path / "all" / "third")
    with serving(bundle=tmp_path / "all" / "first", threads=1) as service:
        each = service.value("model_bytes", model="first")
    most = 2.5 * each / 2**20
    with serving(bundle=tmp_path / "all", admin_keys="root", threads=1, models_mib=most, max_seconds=1000) as service:
        assert states(service) == {"first": True, "second": True, "third": False}
        assert service.post("/continue", clip, data=WAV | {"model": "third"}).status_code == 200
        assert states(service) == {"first": True, "second": False, "third": True}
        visitor = Visitor(service, "/continue", clip, model="third", **LONG)
        until(lambda: service.value("model_slots_used", model="third") == 1)
        answer = service.post("/continue", clip, data={"model": "second"})
        assert code(answer) == (503, "not_ready") and "no room" in answer.text
        visitor.leave()
        assert service.post("/continue", clip, data=WAV | {"model": "second"}).status_code == 200
        assert states(service) == {"first": True, "second": True, "third": False}
        service.app.state.models.find("third").nbytes = round(2 * each)  # as if it were larger
        assert code(service.post("/continue", clip, data={"model": "third"})) == (503, "not_ready")
        assert states(service) == {"first": True, "second": True, "third": False}, "none goes for nothing"


def test_what_cannot_be_loaded_keeps_no_server_from_starting(folder: Path, tmp_path: Path, clip: bytes) -> None:
    """One of many in a folder; a path that is named by itself does."""
    shutil.copytree(folder, tmp_path / "all")
    shutil.copytree(folder.parent / "third", tmp_path / "all" / "third")
    (tmp_path / "all" / "first" / CODEC).write_bytes(b"on its way")
    with serving(bundle=tmp_path / "all", admin_keys="root", threads=1) as service:
        assert states(service) == {"second": True, "third": True}
    with pytest.raises(BundleError), serving(bundle=tmp_path / "all" / "first", threads=1):
        pass
    for name in ("second", "third"):
        (tmp_path / "all" / name / CODEC).write_bytes(b"on its way")
    with pytest.raises(UserError, match="no bundle can be loaded"), serving(bundle=tmp_path / "all", threads=1):
        pass


def test_who_is_unloaded_while_a_first_loading_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "all")
    begun, go_on = threading.Event(), threading.Event()

    def broken(*given: Any) -> None:
        begun.set()
        go_on.wait(30)
        raise BundleError("damaged")

    with serving(bundle=tmp_path / "all", admin_keys="root", threads=1) as service:
        shutil.copytree(folder.parent / "third", tmp_path / "all" / "third")
        monkeypatch.setattr(catalog, "load", broken)
        body = {"model": "third"}
        loads = service.client.post("/v1/admin/models", json=body, headers=ADMIN)
        asked = asyncio.run_coroutine_threadsafe(loads, service.loop)
        assert begun.wait(30)
        answer = unload(service, "third", wait_seconds=0)
        assert code(answer) == (409, "model_in_use") and "being loaded" in answer.text, "it does not wait"
        gone = service.client.delete("/v1/admin/models/third?wait_seconds=30", headers=ADMIN)
        unloaded = asyncio.run_coroutine_threadsafe(gone, service.loop)
        until(lambda: service.app.state.models._served["third"].leaving)
        go_on.set()
        assert code(asked.result(30)) == (503, "not_ready")
        assert code(unloaded.result(30)) == (404, "model_not_found")


def test_memory_comes_back(both: Service, clip: bytes) -> None:
    """At once, without Python's collector of circles."""
    size = both.value("model_bytes", model="second")
    for _ in range(2):  # what the libraries keep for later is there afterwards
        both.post("/continue", clip, data=WAV | {"model": "second"})
        unload(both, "second")
        load(both, "second")
    with bytes_kept() as kept:
        unload(both, "second")
        freed = -kept()
        assert load(both, "second").status_code == 201
        grown = kept()
    assert freed > 0.5 * size, f"{freed} of {size}"
    assert grown < 0.3 * size, f"{grown} of {size}"


def test_the_shutdown_ends_the_streams_of_all(folder: Path, clip: bytes) -> None:
    whole = {"seconds": "900", "timeout_seconds": "100"}
    with serving(bundle=folder, threads=1, max_seconds=1000, drain_seconds=0.2) as service:
        sent = [in_background(service, "/continue", clip, model=name, **whole) for name in NAMES]
        until(lambda: service.value("slots_used") == 2)
    for one in sent:
        (choice,) = one.result(30).json()["choices"]
        assert choice["finish_reason"] == "cancelled" and choice["tokens"]


def test_admins_have_keys_of_their_own(folder: Path, clip: bytes) -> None:
    with serving(bundle=folder, threads=1) as service:
        assert "/v1/admin/models" not in service.app.openapi()["paths"]
        assert service.get("/v1/admin/models", headers=ADMIN).status_code == 404, "nobody may, so there is nothing"
    keys = {"api_keys": {"alice": "user"}, "admin_keys": {"boss": "root"}}
    with serving(bundle=folder, threads=1, **keys) as service:
        for headers in ({}, {"authorization": "Bearer user"}):
            for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/second")):
                answer = service.wait(service.client.request(method, f"/v1/admin/models{path}", headers=headers))
                assert code(answer) == (401, "invalid_api_key")
        assert states(service) == {"first": True, "second": True}
        assert code(service.post("/score", clip, headers=ADMIN)) == (401, "invalid_api_key")


def test_series_of_models_are_bounded() -> None:
    metrics = Metrics()
    labels = {metrics.model_label(f"model-{index}") for index in range(3 * MODEL_LABELS)}
    assert len(labels) == MODEL_LABELS + 1 and OTHER_MODELS in labels
    assert metrics.model_label("model-0") == "model-0"


def test_figures_of_each_model(folder: Path, clip: bytes) -> None:
    with serving(bundle=folder, threads=1) as service:
        service.post("/continue", clip, data=WAV | {"model": "second"})
        service.post("/score", clip)
        value = service.value
        assert [value("model_requests_total", model=name) for name in NAMES] == [1, 1]
        assert [value("model_generated_tokens_total", model=name) for name in NAMES] == [0, 30]
        assert [value("model_prompt_tokens_total", model=name) for name in NAMES] == [100, 100]
        assert value("generated_tokens_total") == 30 and value("prompt_tokens_total") == 200


def test_a_real_server_of_several(folder: Path, clip: bytes, alone: dict[str, list[Any]]) -> None:
    """The command with its flag repeated, over sockets."""
    flags = ("--bundle", str(folder / "second"), "--admin-keys", "root", "--threads", "1")
    server = Server(folder / "first", *flags)
    try:

        def content(**fields: str) -> bytes:
            return server.client.post("/continue", files={"file": ("a", clip)}, data=WAV | fields).content

        assert {name: content(model=name) for name in NAMES} == {name: alone[name][0] for name in NAMES}
        assert content() == alone["first"][0]
        assert server.client.delete("/v1/admin/models/second", headers=ADMIN).status_code == 200
        assert server.client.get("/v1/models/second").status_code == 404
        body = {"model": "second"}
        assert server.client.post("/v1/admin/models", json=body, headers=ADMIN).status_code == 201
        assert content(model="second") == alone["second"][0]
    finally:
        server.close()
