"""The server on Ray Serve: a cluster of two nodes on this machine, a replica on each. `make test-ray` runs it.

No law here is told by a clock: tests wait for states, which take long on a machine that is busy.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websocket
from websockets.typing import Origin

from model.checkpoint import Bundle, save_bundle
from model.constants import FRAME_RATE_HZ
from tests.support.on_ray import OnRay, Streaming, cluster, start_time
from tests.support.service import serving, sound
from tests.support.waiting import HANG_SECONDS, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc: run it on Linux"),
    # Ray's own, and of what it leaves to the collector when it is shut down
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning",
                               "ignore::pytest.PytestUnraisableExceptionWarning"),
]  # fmt: skip
LONG_SECONDS = 900.0  # of audio: computing it outlasts what a test does meanwhile
PCM_BYTES = 320 * 2  # of a frame


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "bundle"
    save_bundle(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def clip(speech_like: Any) -> bytes:
    return sound(speech_like[:32_111].numpy(), form="FLAC")


@pytest.fixture(scope="module")
def server(folder: Path, clip: bytes) -> Iterator[OnRay]:
    pytest.importorskip("ray", reason="needs Ray: make test-ray")
    with serving(bundle=[folder], threads=1, slots=2):  # what it compiles is there for the replicas
        pass
    with cluster():
        running = OnRay(folder)
        running.deploy()
        yield running
        running.client.close()


def post(server: OnRay, clip: bytes, **fields: str) -> httpx.Response:
    form = {"seconds": "1", "seed": "3", "store": "false"} | fields
    return httpx.post(f"{server.url}/continue", files={"file": ("a", clip)}, data=form, timeout=HANG_SECONDS)


def until_free(server: OnRay) -> None:
    names = ("slots_used", "requests_running", "requests_waiting")
    until(lambda: not sum(one.value(name) for one in server.told().values() for name in names), pause=0.1)


def test_two_nodes_answer_as_one_plain_server(server: OnRay, folder: Path, clip: bytes) -> None:
    """To the byte, whichever of the two answers."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    assert [node["Resources"]["CPU"] for node in nodes] == [1, 1] and "CPU" not in ray.available_resources()
    forms: list[dict[str, str]] = [
        {"response_format": "wav"}, {"response_format": "flac", "temperature": "0.7", "top_k": "40"},
        {"response_format": "pcm", "stream": "true", "seed": "9"},
    ]  # fmt: skip
    with serving(bundle=[folder], threads=1, slots=2, max_seconds=1000) as plain:
        expected = [
            plain.post("/continue", clip, data={"seconds": "1", "seed": "3", "store": "false"} | form).content
            for form in forms
        ]
        score = plain.post("/score", clip, data={"detail": "tokens"}).json()
    answered: set[float] = set()

    def both_have() -> bool:
        for form, content in zip(forms, expected, strict=True):
            assert post(server, clip, **form).content == content, form
        ours = server.client.post("/score", files={"file": ("clip0", clip)}, data={"detail": "tokens"}).json()
        assert ours == score
        name = 'requests_total{outcome="ok",route="/continue"}'
        answered.update(start for start, one in server.told().items() if one.value(name) > 0)
        return len(answered) == 2

    until(both_have, lambda: str(answered), 0.1)


def test_an_answer_has_one_id(server: OnRay) -> None:
    for headers in ({}, {"x-request-id": "mine-1"}):
        answer = server.client.get("/livez", headers=headers)
        (found,) = answer.headers.get_list("x-request-id")
        assert found == headers.get("x-request-id", found)
    error = server.client.get("/nothing", headers={"x-request-id": "mine-2"})
    assert error.json()["error"]["request_id"] == "mine-2" and error.status_code == 404


def test_all_permits_in_use_are_our_own_429(server: OnRay, clip: bytes) -> None:
    """And clients that leave give back what they held, counted as clients that left."""
    server.deploy({"queue": 1})
    until_free(server)
    leaving = threading.Event()

    def hold(seed: int) -> None:
        """Ray's router goes by what it knows of a replica's load, which is a little old: one may be full too early."""
        form = {"seconds": str(LONG_SECONDS), "seed": str(seed), "stream": "true", "store": "false"}
        while not leaving.is_set():
            with httpx.stream("POST", f"{server.url}/continue", files={"file": ("a", clip)}, data=form,
                              timeout=HANG_SECONDS) as answer:  # fmt: skip
                if answer.status_code == 200:
                    leaving.wait(HANG_SECONDS)

    # two slots and a place to wait in each; a stream that waits has no answer yet, so nobody hears of it
    holding = [threading.Thread(target=hold, args=(seed,), daemon=True) for seed in range(6)]
    for one in holding:
        one.start()
    until(lambda: server.total("requests_running") == 6, pause=0.2)
    refused = post(server, clip)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    leaving.set()
    for thread in holding:
        thread.join(HANG_SECONDS)
    until_free(server)
    told = server.told().values()
    assert sum(one.value('client_disconnects_total{stage="step"}') for one in told) >= 4
    assert not sum(one.value('requests_total{outcome="server_error",route="/continue"}') for one in told)


def test_sessions_pass(server: OnRay, speech_like: Any) -> None:
    with websocket(f"ws://127.0.0.1:{server.port}/v1/audio/session") as session:
        assert json.loads(session.recv())["type"] == "session.created"
        session.send(np.round(speech_like[:24_000].numpy() * 32767).astype("<i2").tobytes())
        session.send('{"type": "input_audio_buffer.commit"}')
        session.send('{"type": "response.create", "response": {"seconds": 1, "seed": 5}}')
        kinds: list[str] = []
        while not kinds or kinds[-1] != "response.done":
            kinds.append(json.loads(session.recv(HANG_SECONDS))["type"])
        assert {"input_audio.scored", "input_audio_buffer.committed", "response.output_audio.delta"} <= set(kinds)
    with pytest.raises(InvalidStatus) as refused:
        websocket(f"ws://127.0.0.1:{server.port}/v1/audio/session", origin=Origin("http://elsewhere.example"))
    assert refused.value.response.status_code == 403 and b"forbidden" in refused.value.response.body
    until_free(server)


def test_a_killed_replica_takes_its_own_requests_and_is_replaced(server: OnRay, clip: bytes) -> None:
    until_free(server)
    streams = [Streaming(server.url, clip, 300, seed) for seed in range(4)]
    until(lambda: server.total("requests_running") == 4, pause=0.1)
    killed = max(server.told().values(), key=lambda one: one.value("requests_running"))
    (pid,) = [pid for pid in server.pids() if abs(killed.started - start_time(pid)) < 0.05]
    server.kill(pid)
    for stream in streams:
        stream.join(HANG_SECONDS)
    lost = [stream for stream in streams if stream.broken or stream.status != 200]  # one that waited has no answer
    assert len(lost) == killed.value("requests_running") > 0
    whole = 300 * FRAME_RATE_HZ * PCM_BYTES
    assert all(stream.size < whole for stream in lost), "and they were told that it is not all"
    assert [stream.size for stream in streams if not stream.broken] == [whole] * (4 - len(lost))
    until(lambda: server.running() == 2, lambda: str(server.states()), 0.2)
    assert killed.started not in server.told()


def test_a_rolling_redeploy_cuts_no_stream(server: OnRay, clip: bytes) -> None:
    """Nor does it lose a request of those that go on coming; one replica goes at a time."""
    until_free(server)
    old = set(server.told())
    streams = [Streaming(server.url, clip, 300, seed) for seed in range(2)]
    until(lambda: server.total("requests_running") == 2, pause=0.1)
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(post(server, clip, seconds="0.2").status_code)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    server.deploy({"queue": 15})
    until(lambda: not set(server.told()) & old, pause=0.2)
    over.set()
    asking.join(HANG_SECONDS)
    for stream in streams:
        stream.join(HANG_SECONDS)
    assert [(one.status, one.broken) for one in streams] == [(200, "")] * 2
    assert [one.size for one in streams] == [300 * FRAME_RATE_HZ * PCM_BYTES] * 2
    assert len(answers) > 3 and set(answers) == {200}, answers


def test_what_runs_longer_than_a_drain_ends_with_what_it_has(server: OnRay, clip: bytes, speech_like: Any) -> None:
    """A whole answer, a session and a stream, of replicas that Ray ends: each is told in its own way."""
    until_free(server)
    server.deploy({"drain_seconds": 1, "drain_grace_seconds": 0, "slots": 3})  # whoever Ray sends them all to
    found: dict[str, Any] = {}

    def whole() -> None:
        found["whole"] = post(server, clip, seconds=str(LONG_SECONDS)).json()["choices"][0]

    def session() -> None:
        with websocket(f"ws://127.0.0.1:{server.port}/v1/audio/session") as opened:
            opened.send(np.round(speech_like[:24_000].numpy() * 32767).astype("<i2").tobytes())
            opened.send('{"type": "input_audio_buffer.commit"}')
            opened.send('{"type": "response.create", "response": {"seconds": 900}}')
            found["events"] = [json.loads(event) for event in opened]
            found["code"] = opened.close_code

    threads = [threading.Thread(target=one, daemon=True) for one in (whole, session)]
    for thread in threads:
        thread.start()
    stream = Streaming(server.url, clip, LONG_SECONDS, 1)
    until(lambda: server.total("slots_used") == 3, pause=0.1)
    server.deploy({"queue": 2})
    for thread in [*threads, stream]:
        thread.join(HANG_SECONDS)
    assert found["whole"]["finish_reason"] == "cancelled" and found["whole"]["tokens"]
    done, error = found["events"][-2:]
    assert (done["type"], done["response"]["status"], error["error"]["code"]) == (
        "response.done", "incomplete", "draining",
    )  # fmt: skip
    assert found["code"] == 1001
    assert stream.broken and 0 < stream.size < LONG_SECONDS * FRAME_RATE_HZ * PCM_BYTES, "cut, not ended"


def test_replicas_come_with_load_and_go_without(server: OnRay, clip: bytes) -> None:
    replicas = {"min": 1, "max": 2, "running": 1, "waiting": 1, "up_seconds": 1, "down_seconds": 3,
                "look_back_seconds": 11}  # fmt: skip
    server.deploy({"queue": 8}, replicas=replicas)
    until(lambda: server.running() == 1, lambda: str(server.states()), 0.2)
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            post(server, clip, seconds="60")

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for one in asking:
        one.start()
    until(lambda: server.running() == 2, lambda: str(server.states()), 0.2)
    over.set()
    for one in asking:
        one.join(HANG_SECONDS)
    until(lambda: server.states() == {"RUNNING": 1}, lambda: str(server.states()), 0.2)
    assert post(server, clip).status_code == 200


def test_rays_own_queue_is_the_second_belt(server: OnRay, clip: bytes) -> None:
    """Were Ray to hand over less than a replica takes: what its queue refuses is a 429 with Retry-After, too."""
    from ray import serve

    from deploy.ray_replica import Replica
    from deploy.ray_serve import options

    config = server.file({"queue": 8}, replicas={"min": 1, "max": 1}, max_queued_requests=1).application.args
    narrow = options(config) | {"max_ongoing_requests": 1}
    made = serve.deployment(name="whisper-gpt", **narrow)(serve.ingress()(Replica))
    serve.run(made.bind(config.settings, config.ongoing), name="whisper-gpt", route_prefix="/")
    until(lambda: server.running() == 1, lambda: str(server.states()), 0.2)
    streams = [Streaming(server.url, clip, 120, seed) for seed in range(6)]
    for stream in streams:
        stream.join(HANG_SECONDS)
    assert {200, 429} == {stream.status for stream in streams}
    held = Streaming(server.url, clip, 120, 0)
    held.begun.wait(HANG_SECONDS)
    waits = Streaming(server.url, clip, 0.2, 0)
    refused = post(server, clip)
    while refused.status_code == 200:  # it came before the other one had its place
        refused = post(server, clip)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    for stream in (held, waits):
        stream.join(HANG_SECONDS)


def test_what_rays_proxy_does_not_bound(server: OnRay) -> None:
    """As docs/ray.md tells it. Should Ray come to do better, this fails, and the page is to be changed."""
    server.deploy({"head_timeout_seconds": 0.2, "upload_timeout_seconds": 0.5})

    def answered(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECONDS) as client:
            client.sendall(request)
            return client.recv(64)

    assert b" 200 " in answered(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n")
    assert b" 200 " in answered(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 2_000 + b"\r\n")
    assert b" 200 " in answered(b"GET /livez HTTP/1.1\r\n\r\n"), "no Host"
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECONDS) as half:
        half.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        time.sleep(2)  # ten times what the setting allows
        half.sendall(b"\r\n")
        assert b" 200 " in half.recv(64)
    kind = b"Content-Type: multipart/form-data; boundary=q"
    late = b"POST /continue HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n" + kind + b"\r\n\r\n"
    assert b" 408 " in answered(late), "a body's time is the application's own, and holds"
