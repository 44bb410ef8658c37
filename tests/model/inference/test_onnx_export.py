"""ONNX Runtime computes what torch does, from files that hold all they need."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle, random_bundle
from model.constants import HOP_SAMPLES
from model.inference.onnx_export import ENCODER, STEP, ExportedEncoder, ExportedStep, empty_past, export
from model.inference.scoring import score
from tests.support.signals import enliven

FRAMES = 60


@pytest.fixture(scope="module", params=["spectral", "seanet"])
def bundle(request: pytest.FixtureRequest, speech_like: Tensor) -> Bundle:
    made = random_bundle(encoder=request.param)
    if request.param == "seanet":
        enliven(made.codec, speech_like)
    return made


def exact_mel(bundle: Bundle, clip: Tensor) -> Tensor:
    """Log-mel frames by torch in float64: in float32 torch's own are off by a thousandth where a clip is quiet."""
    exact: Tensor = deepcopy(bundle.mel).double()(clip[None].double()).float()
    return exact


def scored_by(run_step: Any, bundle: Bundle, codes: Any, mel: Any) -> list[float]:
    """Log-probabilities of coarse codes (T,), as one who has only the step would compute them."""
    last = bundle.lm.config.window - 1
    mel_stack = bundle.lm.mel.stack if bundle.lm.mel is not None else bundle.lm.stack
    mel_past, past = empty_past(mel_stack).numpy(), empty_past(bundle.lm.stack).numpy()
    token, frame, logprobs = 1024, np.zeros((1, 64), np.float32), []
    for position, code in enumerate(codes):
        given = [np.array([token]), frame, np.array([position]), mel_past, past]
        logits, mel_new, new = run_step(given)
        wide = logits[0].astype(np.float64)
        logprobs.append(wide[code] - wide.max() - np.log(np.exp(wide - wide.max()).sum()))
        mel_past = np.concatenate([mel_past, mel_new], 3)[:, :, :, -last:]
        past = np.concatenate([past, new], 3)[:, :, :, -last:]
        token, frame = int(code), mel[position : position + 1]
    return logprobs


@torch.no_grad()
def test_what_is_exported_computes_what_the_bundle_does(bundle: Bundle, speech_like: Tensor) -> None:
    """In torch: the step by step scores are those of `score`."""
    clip = speech_like[: HOP_SAMPLES * FRAMES]
    codes, mel = ExportedEncoder(bundle).eval()(clip[None])
    assert mel.shape == (1, FRAMES, 64)
    torch.testing.assert_close(mel, exact_mel(bundle, clip), atol=1e-4, rtol=0)
    assert torch.equal(codes, bundle.codec.encode(clip[None]))
    step = ExportedStep(bundle.lm).eval()

    def run(given: list[Any]) -> list[Any]:
        return [part.numpy() for part in step(*map(torch.from_numpy, given))]

    found = scored_by(run, bundle, codes[0, 0].numpy(), mel[0].numpy())
    np.testing.assert_allclose(found, score(bundle, clip).logprobs.numpy(), atol=1e-4)


@pytest.mark.slow
def test_onnx_runtime_scores_a_clip_as_torch_does(bundle: Bundle, speech_like: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="pip install onnx onnxscript onnxruntime")
    pytest.importorskip("onnxscript", reason="pip install onnx onnxscript onnxruntime")
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxscript onnxruntime")
    assert [path.name for path in export(bundle, tmp_path)] == [ENCODER, STEP]
    assert {path.name for path in tmp_path.iterdir()} == {ENCODER, STEP}, "the weights are inside"
    encoder, step = (onnxruntime.InferenceSession(str(tmp_path / name)) for name in (ENCODER, STEP))
    for frames in (7, FRAMES):
        clip = speech_like[: HOP_SAMPLES * frames]
        codes, mel = encoder.run(None, {"samples": clip[None].numpy()})
        np.testing.assert_allclose(mel, exact_mel(bundle, clip).numpy(), atol=1e-4)
        assert np.array_equal(codes, bundle.codec.encode(clip[None]).numpy())
    names = ["token", "mel", "position", "mel_past", "past"]

    def run(given: list[Any]) -> Any:
        return step.run(None, dict(zip(names, given, strict=True)))

    found = scored_by(run, bundle, codes[0, 0], mel[0])
    np.testing.assert_allclose(found, score(bundle, clip).logprobs.numpy(), atol=1e-4)


def test_what_was_there_stays_until_both_are_whole(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder of one bundle beside the step of another would score, and wrongly."""
    for name in (ENCODER, STEP):
        (tmp_path / name).write_text("of before")

    def write(model: Any, inputs: Any, path: str, **settings: Any) -> None:
        Path(path).write_text("half")
        if path.endswith(STEP):
            raise KeyboardInterrupt

    monkeypatch.setattr("torch.onnx.export", write)
    with pytest.raises(KeyboardInterrupt):
        export(bundle, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys((ENCODER, STEP), "of before")
