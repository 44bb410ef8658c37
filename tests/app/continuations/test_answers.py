"""POST /continue: what it answers to good requests."""

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from app.audio.encode import encode
from app.audio.mixing import JOINT_SAMPLES
from model.inference.generate import generate
from model.inference.sampling import SamplingOptions

GOOD = {"seconds": "0.4", "seed": "7"}


def audio_of(choice: dict[str, Any]) -> np.ndarray:
    samples: np.ndarray
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(choice["audio"]["data"])), dtype="int16")
    assert rate == 24_000
    return samples


def test_three_seconds(service: Any, clip: bytes) -> None:
    answer = service.post("/continue", clip, data={"seconds": "3"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    choice = body["choices"][0]
    assert (body["object"], body["sample_rate"], body["frame_rate"]) == ("audio.continuation", 24_000, 75)
    assert len(choice["tokens"]) == len(choice["logprobs"]) == 225
    assert len(audio_of(choice)) == 72_000
    assert choice["seconds"] == 3.0
    assert choice["finish_reason"] == "length"
    assert choice["nll"] == pytest.approx(-np.mean(choice["logprobs"]))
    assert choice["perplexity"] == pytest.approx(math.exp(choice["nll"]))
    assert body["prompt"]["tokens"] == 100
    assert body["prompt"]["seconds"] == pytest.approx(100 / 75)
    assert 0 < body["timings"]["prefill_seconds"] < body["timings"]["first_audio_seconds"]
    assert body["timings"]["real_time_factor"] > 0


@pytest.mark.parametrize("form", ["json", "wav"])
def test_a_browser_sees_where_the_time_went(service: Any, clip: bytes, form: str) -> None:
    answer = service.post("/continue", clip, data={"seconds": "0.5", "response_format": form})
    parts = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    spent = {name: float(milliseconds) for name, milliseconds in parts.items()}
    assert list(spent) == ["queue", "prefill", "first-audio", "total"]
    assert 0 <= spent["queue"] and 0 < spent["prefill"] < spent["first-audio"] < spent["total"]
    if form == "json":
        assert spent["total"] == pytest.approx(1000 * answer.json()["timings"]["total_seconds"], abs=0.1)


def test_answer_is_the_models(service: Any, bundle: Any, clip: bytes) -> None:
    """What comes over HTTP is what the model makes of the file's samples."""
    samples, _ = soundfile.read(io.BytesIO(clip), dtype="float32")
    options = SamplingOptions(temperature=0.8, top_k=50, top_p=0.9, seed=7)
    made = list(generate(bundle, torch.from_numpy(samples), frames=30, options=options))
    fields = GOOD | {"temperature": "0.8", "top_k": "50", "top_p": "0.9"}
    choice = service.post("/continue", clip, data=fields).json()["choices"][0]
    assert choice["tokens"] == [int(frame.codes[0, 0]) for frame in made]
    assert choice["logprobs"] == pytest.approx([float(frame.logprobs[0]) for frame in made], abs=1e-4)


def test_same_seed_same_bytes(service: Any, clip: bytes) -> None:
    first, again = (service.post("/continue", clip, data=GOOD).json() for _ in range(2))
    other = service.post("/continue", clip, data=GOOD | {"seed": "8"}).json()
    assert first["choices"] == again["choices"]
    assert first["seed"] == 7
    assert first["choices"] != other["choices"]


def test_drawn_seed_is_echoed(service: Any, clip: bytes) -> None:
    drawn = service.post("/continue", clip, data={"seconds": "0.2"}).json()
    assert drawn["seed"] < 2**53
    repeated = service.post("/continue", clip, data={"seconds": "0.2", "seed": str(drawn["seed"])}).json()
    assert repeated["choices"] == drawn["choices"]


def test_formats_agree_sample_for_sample(service: Any, clip: bytes) -> None:
    whole = service.post("/continue", clip, data=GOOD).json()
    expected = audio_of(whole["choices"][0])
    for form, media in (("wav", "audio/wav"), ("flac", "audio/flac"), ("pcm", "audio/pcm")):
        answer = service.post("/continue", clip, data=GOOD | {"response_format": form})
        assert answer.headers["content-type"] == media
        assert answer.headers["x-whispergpt-seed"] == "7"
        assert answer.headers["x-whispergpt-id"].startswith("cont-")
        assert float(answer.headers["x-whispergpt-nll"]) == pytest.approx(whole["choices"][0]["nll"], abs=1e-5)
        if form == "pcm":
            samples = np.frombuffer(answer.content, "<i2")
        else:
            samples, _ = soundfile.read(io.BytesIO(answer.content), dtype="int16")
        np.testing.assert_array_equal(samples, expected)


def test_wav_sizes_are_exact(service: Any, clip: bytes) -> None:
    content = service.post("/continue", clip, data=GOOD | {"response_format": "wav"}).content
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    at = content.index(b"data")
    assert int.from_bytes(content[at + 4 : at + 8], "little") == len(content) - at - 8 == 30 * 320 * 2


@pytest.mark.parametrize(("form", "media", "added"), [("opus", "audio/ogg", 0), ("mp3", "audio/mpeg", 1_105)])
def test_lossy_formats(service: Any, clip: bytes, form: Any, media: str, added: int) -> None:
    """They are made from the very samples of the other formats, and are the same each time."""
    expected = audio_of(service.post("/continue", clip, data=GOOD).json()["choices"][0])
    answers = [service.post("/continue", clip, data=GOOD | {"response_format": form}) for _ in range(2)]
    assert answers[0].headers["content-type"] == media
    assert answers[0].content == answers[1].content == encode(expected.astype(np.float32) / np.float32(32767), form)
    samples, rate = soundfile.read(io.BytesIO(answers[0].content))
    assert rate == 24_000
    assert len(expected) + added <= len(samples) <= len(expected) + added + (2 * 576 if added else 0)


def test_include_prompt(service: Any, clip: bytes) -> None:
    """The prompt's own samples, not a coded copy, up to the 10 ms where the two are joined."""
    plain = audio_of(service.post("/continue", clip, data=GOOD).json()["choices"][0])
    joined = service.post("/continue", clip, data=GOOD | {"include_prompt": "true"}).json()["choices"][0]
    samples = audio_of(joined)
    own, _ = soundfile.read(io.BytesIO(clip), dtype="int16")
    prompt = 100 * 320
    assert len(samples) == prompt + 30 * 320
    assert joined["seconds"] == pytest.approx(130 / 75)
    untouched = prompt - JOINT_SAMPLES
    assert np.abs(samples[:untouched].astype(int) - own[:untouched]).max() <= 1
    np.testing.assert_array_equal(samples[prompt:], plain)


def test_several_choices(service: Any, clip: bytes) -> None:
    """Each has random numbers of its own, and the first is the one of n = 1."""
    one = service.post("/continue", clip, data=GOOD).json()["choices"]
    two = service.post("/continue", clip, data=GOOD | {"n": "2"}).json()["choices"]
    assert [choice["index"] for choice in two] == [0, 1]
    assert two[0]["tokens"] == one[0]["tokens"]
    assert two[0]["tokens"] != two[1]["tokens"]


def test_prompt_window(service: Any, speech: Any, to_file: Any) -> None:
    """A window of a file is continued as a file of that window is."""
    fields = GOOD | {"prompt_start": "0.25", "prompt_end": "0.75"}
    window = service.post("/continue", to_file(speech), data=fields).json()
    alone = service.post("/continue", to_file(speech[6_000:18_000]), data=GOOD).json()
    assert window["prompt"] == alone["prompt"]
    assert window["choices"] == alone["choices"]


def test_seconds_round_up_to_frames(service: Any, clip: bytes) -> None:
    choice = service.post("/continue", clip, data={"seconds": "0.101"}).json()["choices"][0]
    assert len(choice["tokens"]) == 8


def test_greedy_needs_no_seed(service: Any, clip: bytes) -> None:
    fields = {"seconds": "0.2", "temperature": "0"}
    first, again = (service.post("/continue", clip, data=fields).json()["choices"] for _ in range(2))
    assert first == again


def test_alias(service: Any, clip: bytes) -> None:
    one, two = (service.post(path, clip, data=GOOD) for path in ("/continue", "/v1/audio/continuations"))
    assert one.json()["choices"] == two.json()["choices"]


def test_time_up_returns_what_is_ready(serve: Any, clip: bytes) -> None:
    service = serve(max_seconds=1000)
    answer = service.post("/continue", clip, data={"seconds": "900", "timeout_seconds": "0.8"})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "timeout"
    assert 0 < len(choice["tokens"]) < 900 * 75
    assert len(audio_of(choice)) == 320 * len(choice["tokens"])
