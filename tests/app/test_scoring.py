"""POST /score."""

import io
import math
from typing import Any

import pytest
import soundfile
import torch

from model.score import score


def test_summary(service: Any, bundle: Any, clip: bytes) -> None:
    samples, _ = soundfile.read(io.BytesIO(clip), dtype="float32")
    expected = score(bundle, torch.from_numpy(samples))
    body = service.post("/score", clip).json()
    assert body["object"] == "audio.score"
    assert body["model"] == bundle.name
    (one,) = body["results"]
    assert one["filename"] == "clip0"
    assert one["tokens"] == 100
    assert one["seconds"] == pytest.approx(100 / 75)
    assert one["nll"] == pytest.approx(expected.nll, abs=1e-4)
    assert one["perplexity"] == pytest.approx(math.exp(one["nll"]))
    assert one["bits_per_second"] == pytest.approx(one["nll"] / math.log(2) * 75)
    assert one["accuracy"] == pytest.approx(expected.accuracy)
    assert "logprobs" not in one


def test_tokens(service: Any, clip: bytes) -> None:
    (one,) = service.post("/v1/audio/scores", clip, data={"detail": "tokens"}).json()["results"]
    assert len(one["logprobs"]) == len(one["codes"]) == 100
    assert one["nll"] == pytest.approx(-sum(one["logprobs"]) / 100, abs=1e-5)


def test_context_is_not_scored(service: Any, clip: bytes) -> None:
    (whole,) = service.post("/score", clip, data={"detail": "tokens"}).json()["results"]
    (rest,) = service.post("/score", clip, data={"detail": "tokens", "prompt_seconds": "0.4"}).json()["results"]
    assert rest["tokens"] == 70
    assert rest["logprobs"] == pytest.approx(whole["logprobs"][30:], abs=1e-5)


def test_prompts_nll_is_its_score(service: Any, clip: bytes) -> None:
    (scored,) = service.post("/score", clip).json()["results"]
    continued = service.post("/continue", clip, data={"seconds": "0.1"}).json()
    assert continued["prompt"]["nll"] == pytest.approx(scored["nll"], abs=1e-4)


def test_bad_clips_among_good_ones(service: Any, clip: bytes) -> None:
    answer = service.post("/score", clip, b"text, not audio, and some more of it", clip, b"")
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["filename"] for result in results] == ["clip0", "clip1", "clip2", "clip3"]
    assert [result.get("error", {}).get("code") for result in results] == [
        None, "unsupported_format", None, "audio_invalid",
    ]  # fmt: skip
    assert results[0]["nll"] == results[2]["nll"]


def test_all_clips_bad(service: Any) -> None:
    answer = service.post("/score", b"text, not audio, and some more of it", b"")
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_format"


def test_nothing_left_after_the_context(service: Any, clip: bytes) -> None:
    answer = service.post("/score", clip, data={"prompt_seconds": "5"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "audio_too_short")


def test_a_clip_longer_than_a_chunk(service: Any, speech: Any, to_file: Any) -> None:
    """Chunks of 10 s are no part of the result: the first second scores the same with 11 s after it."""
    long = to_file(speech.tolist() * 9)
    (whole,) = service.post("/score", long, data={"detail": "tokens"}).json()["results"]
    (first,) = service.post("/score", to_file(speech), data={"detail": "tokens"}).json()["results"]
    assert whole["tokens"] == 32_111 * 9 // 320
    assert whole["logprobs"][:100] == pytest.approx(first["logprobs"], abs=1e-4)
