"""POST /score."""

import io
import math
from typing import Any

import pytest
import soundfile
import torch

from app.scores.reports import REPORTS, Scored
from model.inference.scoring import score
from model.lm.hybrid_lm import shift


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
    assert "window" not in one


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
    """Chunks of 4 s are no part of the result: the first second scores the same with 11 s after it."""
    long = to_file(speech.tolist() * 9)
    (whole,) = service.post("/score", long, data={"detail": "tokens"}).json()["results"]
    (first,) = service.post("/score", to_file(speech), data={"detail": "tokens"}).json()["results"]
    assert whole["tokens"] == 32_111 * 9 // 320
    assert whole["logprobs"][:100] == pytest.approx(first["logprobs"], abs=1e-4)


def test_window_over_the_whole_clip_is_the_clip(service: Any, clip: bytes) -> None:
    for fields in ({"window_start": "0"}, {"window_seconds": "1.33"}, {"normalise_by": "unigram"}):
        (one,) = service.post("/score", clip, data=fields).json()["results"]
        window = one["window"]
        assert (window["start"], window["seconds"], window["tokens"]) == (0.0, one["seconds"], 100)
        assert window["nll"] == one["nll"]
        assert window["perplexity"] == pytest.approx(math.exp(window["nll"]))
        assert ("baseline_nll" in window) == ("normalise_by" in fields)


def test_window_is_a_part_of_the_tokens(service: Any, bundle: Any, clip: bytes) -> None:
    fields = {"detail": "tokens", "window_start": "0.8", "window_seconds": "0.2", "normalise_by": "unigram"}
    (one,) = service.post("/score", clip, data=fields).json()["results"]
    window = one["window"]
    assert (window["start"], window["seconds"], window["tokens"]) == (0.8, 0.2, 15)
    assert window["nll"] == pytest.approx(-sum(one["logprobs"][60:75]) / 15, abs=1e-5)
    unigram = -float(bundle.lm.unigram[torch.tensor(one["codes"][60:75])].mean())
    assert (window["normalised_by"], window["baseline_nll"]) == ("unigram", pytest.approx(unigram, abs=1e-5))
    assert window["normalised_nll"] == pytest.approx(window["nll"] - unigram, abs=1e-5)


def test_window_normalised_by_itself_alone(service: Any, bundle: Any, clip: bytes) -> None:
    samples, _ = soundfile.read(io.BytesIO(clip), dtype="float32")
    codes = bundle.codec.encode(torch.from_numpy(samples)[None])[:, 0, 30:]
    tokens, mel_frames = shift(codes, bundle.mel(torch.from_numpy(samples)[None])[:, 30:])
    logits = bundle.lm.logits(bundle.lm(tokens, mel_frames))
    alone = -float(logits.log_softmax(-1).gather(-1, codes[..., None]).mean())
    (one,) = service.post("/score", clip, data={"prompt_seconds": "0.4", "normalise_by": "alone"}).json()["results"]
    window = one["window"]
    assert (window["start"], window["tokens"], window["nll"]) == (0.4, 70, one["nll"])  # what is scored, by default
    assert window["baseline_nll"] == pytest.approx(alone, abs=2e-4)
    assert window["normalised_nll"] == pytest.approx(one["nll"] - alone, abs=2e-4)


def test_a_window_holds_one_frame_at_least(service: Any, clip: bytes) -> None:
    fields = {"window_start": "0.801", "window_seconds": "0.001"}
    (one,) = service.post("/score", clip, data=fields).json()["results"]
    assert (one["window"]["start"], one["window"]["tokens"]) == (pytest.approx(61 / 75), 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"window_start": "1.34"}, "window_start"),
        ({"window_start": "1", "window_seconds": "0.4"}, "window_seconds"),
        ({"window_start": "0.1", "prompt_seconds": "0.2"}, "window_start"),
        ({"window_start": "-1"}, "window_start"),
        ({"window_seconds": "0"}, "window_seconds"),
        ({"window_seconds": "nan"}, "window_seconds"),
        ({"normalise_by": "perplexity"}, "normalise_by"),
    ],
    ids=str,
)
def test_windows_that_cannot_be(service: Any, clip: bytes, fields: dict[str, str], param: str) -> None:
    answer = service.post("/score", clip, data=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_parameter", param)


def test_a_window_beyond_one_of_the_clips(service: Any, clip: bytes, speech: Any, to_file: Any) -> None:
    short = to_file(speech[: 40 * 320])
    answer = service.post("/score", clip, short, data={"window_start": "0.6", "window_seconds": "0.5"})
    assert answer.status_code == 200
    good, bad = answer.json()["results"]
    assert good["window"]["tokens"] == 38
    assert (bad["error"]["code"], bad["error"]["param"]) == ("invalid_parameter", "window_start")


def test_log_likelihood_is_the_sum(service: Any, clip: bytes) -> None:
    (one,) = service.post("/score", clip, data={"detail": "tokens", "window_seconds": "0.4"}).json()["results"]
    assert one["log_likelihood"] == pytest.approx(sum(one["logprobs"]), abs=1e-3)
    assert one["log_likelihood"] == pytest.approx(-100 * one["nll"])
    assert one["window"]["log_likelihood"] == pytest.approx(sum(one["logprobs"][:30]), abs=1e-3)


def test_full_detail_and_alternatives(service: Any, bundle: Any, clip: bytes) -> None:
    (plain,) = service.post("/score", clip, data={"detail": "tokens"}).json()["results"]
    assert set(plain).isdisjoint({"entropy", "rank", "top_codes", "top_logprobs"})
    (one,) = service.post("/score", clip, data={"detail": "full", "top_logprobs": "3"}).json()["results"]
    assert {name: one[name] for name in plain} == plain, "more detail changes no figure"
    for name in ("entropy", "rank", "top_codes", "top_logprobs"):
        assert len(one[name]) == 100
    assert one["accuracy"] == pytest.approx(sum(rank == 1 for rank in one["rank"]) / 100)
    for code, logprob, rank, codes, logprobs in zip(
        one["codes"], one["logprobs"], one["rank"], one["top_codes"], one["top_logprobs"], strict=True
    ):
        assert len(codes) == len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True)
        assert (code in codes) == (rank <= 3)
        if rank <= 3:
            assert (codes[rank - 1], logprobs[rank - 1]) == (code, logprob)
    assert all(0 < value <= math.log(1024) + 1e-4 for value in one["entropy"])


def test_an_answer_holds_so_many_alternatives(service: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.scores.service.MAX_ALTERNATIVES", 500)
    fields = {"detail": "tokens", "top_logprobs": "3"}
    good, bad = service.post("/score", clip, clip, data=fields).json()["results"]
    assert len(good["top_codes"]) == 100
    assert (bad["error"]["code"], bad["error"]["param"]) == ("invalid_parameter", "top_logprobs")


def test_scan(service: Any, bundle: Any, clip: bytes) -> None:
    """Each of its figures is what a window of its own would have."""
    fields = {"prompt_seconds": "0.2", "window_seconds": "0.4", "window_step": "0.2", "normalise_by": "unigram"}
    (one,) = service.post("/score", clip, data=fields).json()["results"]
    scan = one["scan"]
    assert "window" not in one
    assert (scan["start"], scan["window_seconds"], scan["step_seconds"]) == (0.2, 0.4, 0.2)
    assert len(scan["nll"]) == len(scan["baseline_nll"]) == len(scan["normalised_nll"]) == 4
    for index, nll in enumerate(scan["nll"]):
        single = {"window_start": str(0.2 + 0.2 * index), "window_seconds": "0.4", "normalise_by": "unigram"}
        (alone,) = service.post("/score", clip, data=single).json()["results"]
        assert nll == pytest.approx(alone["window"]["nll"], abs=1e-5)
        assert scan["normalised_nll"][index] == pytest.approx(alone["window"]["normalised_nll"], abs=1e-5)


def test_windows_of_a_scan_touch_by_default(service: Any, clip: bytes) -> None:
    (one,) = service.post("/score", clip, data={"window_step": "0.4", "detail": "tokens"}).json()["results"]
    assert (one["scan"]["window_seconds"], one["scan"]["step_seconds"]) == (0.4, 0.4)
    means = [-sum(one["logprobs"][at : at + 30]) / 30 for at in (0, 30, 60)]
    assert one["scan"]["nll"] == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"window_step": "0.1", "window_seconds": "2"}, "window_seconds"),
        ({"window_step": "0.1", "normalise_by": "alone"}, "normalise_by"),
        ({"top_logprobs": "3"}, "top_logprobs"),
        ({"response_format": "csv", "detail": "tokens"}, "detail"),
        ({"response_format": "csv", "window_step": "1"}, "window_step"),
        ({"response_format": "audacity", "detail": "full"}, "detail"),
        ({"response_format": "textgrid", "detail": "full", "top_logprobs": "2"}, "top_logprobs"),
    ],
    ids=str,
)
def test_what_does_not_go_together(service: Any, clip: bytes, fields: dict[str, str], param: str) -> None:
    answer = service.post("/score", clip, data=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_parameter", param)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("csv", "text/csv; charset=utf-8"), ("jsonl", "application/x-ndjson"),
     ("audacity", "text/plain; charset=utf-8"), ("textgrid", "text/plain; charset=utf-8")],
)  # fmt: skip
def test_formats(service: Any, clip: bytes, name: Any, media_type: str) -> None:
    """What the JSON answer's figures are written as."""
    fields = {"prompt_seconds": "0.4", "detail": "tokens"}
    results = service.post("/score", clip, data=fields).json()["results"]
    fields |= {"response_format": name, "detail": "tokens" if name == "jsonl" else "summary"}
    answer = service.post("/score", clip, data=fields)
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content == REPORTS[name].content(Scored("random-tiny", results, 30))


def test_tables_hold_many_clips_and_label_tracks_one(service: Any, clip: bytes) -> None:
    for name in ("csv", "jsonl"):
        answer = service.post("/score", clip, b"text, not audio, and some more of it", data={"response_format": name})
        assert answer.status_code == 200 and "unsupported_format" in answer.text
    for name in ("audacity", "textgrid"):
        error = service.post("/score", clip, clip, data={"response_format": name}).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_parameter", "response_format")
        assert "is of one clip, and these are 2" in error["message"]


def test_picture(service: Any, clip: bytes, to_file: Any, speech: Any) -> None:
    """Of the first clip; the windows of a scan are drawn into it."""
    fields = {"response_format": "png", "prompt_seconds": "0.4"}
    answer = service.post("/score", clip, to_file(speech[:9600]), data=fields)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == service.post("/score", clip, data=fields).content
    with_scan = service.post("/score", clip, data=fields | {"window_step": "0.2"})
    assert with_scan.status_code == 200 and with_scan.content != answer.content
    bad = service.post("/score", to_file(speech[:300]), data=fields)
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "audio_too_short")
    full = service.post("/score", clip, data=fields | {"detail": "full"})
    assert (full.status_code, full.json()["error"]["param"]) == (422, "detail")


def test_picture_without_matplotlib(service: Any, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.scores.reports.find_spec", lambda name: None)
    answer = service.post("/score", clip, data={"response_format": "png"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_parameter", "response_format")
    assert "pip install matplotlib" in error["message"]
    assert service.post("/score", clip).status_code == 200
