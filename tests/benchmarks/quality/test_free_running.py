"""Late mel is late, and the long-run measures are of the seconds that they name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.quality.free_running import DELAYS, MEASURES, SPANS, clip_nll, gap, late, plot, seconds_of, stability
from model.checkpoint import Bundle
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES
from model.inference.scoring import score
from model.lm.hybrid_lm import BOS, shift


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_late(delay: int) -> None:
    mel_frames = torch.arange(20.0).reshape(1, 10, 2)
    masked = torch.zeros(1, 10, dtype=torch.bool)
    masked[0, 0] = True
    moved, hidden = late(mel_frames, masked, delay)
    assert hidden[0].tolist() == [True] * (delay + 1) + [False] * (9 - delay)
    assert torch.equal(moved[0, delay:], mel_frames[0, : 10 - delay])


@torch.inference_mode()
@pytest.mark.parametrize("delay", [1, 3])
def test_delay_is_causal(bundle: Bundle, speech_like: Tensor, delay: int) -> None:
    """With mel d frames late, the logits of frame t depend on no slice later than t - 1 - d: to the bit."""
    samples = speech_like[None, : 40 * HOP_SAMPLES]
    inputs, mel_frames = shift(bundle.codec.encode(samples)[:, 0], bundle.mel(samples))
    assert mel_frames is not None
    changed = mel_frames.clone()
    changed[:, 20:] += 1.0  # mel frames of frames 19 and later, which positions 20 and later would be given in time
    logits = [
        bundle.lm.logits(bundle.lm(inputs, *late(given, inputs == BOS, delay))) for given in (mel_frames, changed)
    ]
    assert torch.equal(logits[0][:, : 20 + delay], logits[1][:, : 20 + delay])
    assert not torch.equal(logits[0][:, 20 + delay], logits[1][:, 20 + delay])


def test_sources_agree_with_score(bundle: Bundle, speech_like: Tensor) -> None:
    clip = speech_like[: 60 * HOP_SAMPLES + 50]
    found = clip_nll(bundle, clip)
    assert len(found) == 3 + len(DELAYS)
    for source in ("real", "decoded", "masked"):
        assert found[source] == pytest.approx(score(bundle, clip, mel=source).nll, abs=2e-4)
    assert len({round(value, 6) for value in found.values()}) == len(found)


def test_gap_is_the_weighted_mean(bundle: Bundle, speech_like: Tensor) -> None:
    clips = [("a", "a", speech_like[: 30 * HOP_SAMPLES]), ("b", "b", speech_like[: 60 * HOP_SAMPLES])]
    report = gap(bundle, clips)
    single = [clip_nll(bundle, samples) for _, _, samples in clips]
    assert (report["clips"], report["tokens"]) == (2, 90)
    masked = report["sources"]["masked"]
    assert masked["nll"]["mean"] == pytest.approx((single[0]["masked"] + 2 * single[1]["masked"]) / 3)
    assert report["sources"]["real"]["above real"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_seconds() -> None:
    rate = FRAME_RATE_HZ
    tokens = np.stack([np.concatenate([np.zeros(rate), np.arange(rate)])]).astype(np.int64)
    loud = 0.1 * np.sin(2 * np.pi * 200 * np.arange(48_000) / 24_000)
    loud[:24_000] *= 0.01
    found = seconds_of(tokens, -np.arange(2 * rate, dtype=np.float32)[None], loud[None], [-23.0])
    assert found["token entropy"] == [[0.0, pytest.approx(np.log(rate))]]
    assert found["silence ratio"] == [[1.0, 0.0]]
    assert found["level"] == [[pytest.approx(-40, abs=0.2), pytest.approx(0, abs=0.2)]]
    assert found["surprise"] == [[pytest.approx((rate - 1) / 2), pytest.approx((3 * rate - 1) / 2)]]


def test_stability_and_its_plot(
    bundle: Bundle, speech_like: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.free_running.LONG_SECONDS", 3)
    monkeypatch.setattr("benchmarks.quality.free_running.PROMPT_SECONDS", 1)
    spans = {"early": slice(0, 1), "end": slice(2, 3)}
    monkeypatch.setattr("benchmarks.quality.free_running.SPANS", spans)
    report = stability(bundle, {"a": speech_like, "b": speech_like.flip(0)}, 1.0, 0)
    assert report["streams"] == 2
    assert set(report["sources"]) == {"decoded", "masked", "real speech"}
    for source, measures in report["sources"].items():
        assert set(measures) == set(MEASURES) - ({"surprise"} if source == "real speech" else set())
        for one in measures.values():
            assert len(one["by second"]) == 3
            assert one["drift"]["mean"] == pytest.approx(one["end"]["mean"] - one["early"]["mean"])
            assert one["early"]["mean"] == pytest.approx(one["by second"][0])
    plot(report, tmp_path / "docs" / "plot.png")
    assert (tmp_path / "docs" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert len(SPANS) == 2
