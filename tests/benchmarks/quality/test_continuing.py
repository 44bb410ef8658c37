"""Rows of prompts continue as each would alone; models of the table are loaded for what they are."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.common import Subject, by_speaker, clips_in, default_models, from_run, load_subjects, logprobs, rounded
from benchmarks.quality.continuing import coded, continue_all
from model.checkpoint import Bundle, BundleError, save_bundle, tokeniser_sha256
from model.constants import HOP_SAMPLES
from model.inference.generate import generate
from model.inference.sampling import SamplingOptions
from model.inference.scoring import score
from model.lm.hybrid_lm import HybridLM

FRAMES = 12


@pytest.fixture(scope="module")
def prompts(speech_like: Tensor) -> Tensor:
    return speech_like[: 3 * 60 * HOP_SAMPLES].reshape(3, -1)  # 0.8 s each, longer than the window of `tiny`


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("codebooks", [8, 1])
def test_first_row_is_what_generate_makes(bundle: Bundle, prompts: Tensor, masked: bool, codebooks: int) -> None:
    """The first row draws with choice number 0, as the only choice of `generate` does."""
    options = SamplingOptions(temperature=0.8, seed=3)
    made = continue_all(Subject("tiny", bundle, masked, codebooks), prompts, FRAMES, options)
    frames = list(
        generate(
            bundle, prompts[0], frames=FRAMES, options=options, mel="masked" if masked else "decoded",
            codebooks=codebooks,
        )
    )  # fmt: skip
    assert made.tokens.shape == made.logprobs.shape == (3, FRAMES)
    assert made.samples.shape == (3, FRAMES * HOP_SAMPLES)
    assert made.tokens[0].tolist() == [int(frame.codes[0, 0]) for frame in frames]
    alone = torch.cat([frame.samples[0] for frame in frames])
    torch.testing.assert_close(torch.from_numpy(made.samples[0]), alone, rtol=0, atol=1e-3)
    assert made.logprobs[0] == pytest.approx([float(frame.logprobs[0]) for frame in frames], abs=1e-3)


def test_rows_do_not_mix(bundle: Bundle, prompts: Tensor) -> None:
    options, subject = SamplingOptions(seed=3), Subject("tiny", bundle)
    every = continue_all(subject, prompts, FRAMES, options)
    other = continue_all(subject, torch.cat([prompts[:1], prompts[:1], prompts[2:]]), FRAMES, options)
    assert every.tokens[[0, 2]].tolist() == other.tokens[[0, 2]].tolist()
    assert every.tokens[1].tolist() != other.tokens[1].tolist()


def test_coded_is_the_codec(bundle: Bundle, prompts: Tensor) -> None:
    codes = bundle.codec.encode(prompts)
    for books in (8, 2):
        wanted = bundle.codec.decode(codes[:, :books])
        torch.testing.assert_close(coded(Subject("tiny", bundle, codebooks=books), prompts), wanted, rtol=0, atol=1e-4)


def test_logprobs_are_those_of_score(bundle: Bundle, prompts: Tensor) -> None:
    tokens, mel_frames = bundle.codec.encode(prompts)[:, 0], bundle.mel(prompts)
    for masked in (False, True):
        found = logprobs(Subject("tiny", bundle, masked), tokens, mel_frames)
        for row, samples in zip(found, prompts, strict=True):
            wanted = score(bundle, samples, mel="masked" if masked else "real").logprobs
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-3)


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> Path:
    """A run of the table, with random weights and no mel."""
    config = replace(bundle.lm.config, mel=False)
    training = {"steps": 1, "batch": 1, "length": 8, "rate": 0.1, "seed": 0, "bf16": False}
    tokens = {"codec_sha256": tokeniser_sha256(bundle.codec)}
    settings = {"config": asdict(config), "training": training, "tokens": tokens}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(json.dumps({"settings": settings}))
    torch.save({"model": HybridLM(config).state_dict()}, tmp_path / "run" / "checkpoint.pt")
    return tmp_path / "run"


def test_subjects_from_bundles_and_runs(bundle: Bundle, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    save_bundle(bundle, folder, half=False)
    one, two, three = load_subjects([f"a={folder}", f"b={folder}:masked", f"c={run}"], folder)
    few, both = load_subjects([f"d={folder}:2", f"e={folder}:masked:1"], folder)
    assert [(x.codebooks, x.masked) for x in (few, both)] == [(2, False), (1, True)]
    assert (one.name, one.mel, one.codebooks, one.bundle.preset) == ("a", "real", 8, bundle.preset)
    assert (two.name, two.mel, two.bundle) == ("b", "masked", one.bundle)
    assert (three.mel, three.codebooks, three.bundle.preset) == ("masked", 1, "gpt-s")  # its fine codes are untrained
    assert three.bundle.codec is one.bundle.codec
    assert three.described()["made_by"]["training"]["steps"] == 1


def finished(folder: Path, row: str, nll: float) -> None:
    """A finished run of the table, as far as its choice is concerned."""
    folder.mkdir()
    valid = {
        "speech": [{"nll": 100 * nll, "frames": 90}, {"nll": 0.0, "frames": 10}],
        "music": [{"nll": 0, "frames": 5}],
    }
    (folder / "result.json").write_text(json.dumps({"row": row, "valid": valid}))


def test_default_models(tmp_path: Path) -> None:
    """The table's models stand beside the bundle's only when both have been trained: the best of each on validation."""
    bundle = tmp_path / "bundle"
    own = [f"hybrid-4m={bundle}", f"hybrid-4m, mel masked={bundle}:masked"]
    assert default_models(bundle, tmp_path) == own
    finished(tmp_path / "one", "gpt-s", 3.2)
    finished(tmp_path / "two", "hybrid-4m, shuffled mel", 1.0)
    assert default_models(bundle, tmp_path) == own
    finished(tmp_path / "three", "hybrid-4m", 3.1)
    finished(tmp_path / "four", "gpt-s", 3.0)
    (tmp_path / "five").mkdir()  # still training
    matched = [f"hybrid-4m of the table={tmp_path / 'three'}", f"gpt-s of the table={tmp_path / 'four'}"]
    assert default_models(bundle, tmp_path) == own + matched


def test_run_of_another_codec(bundle: Bundle, run: Path) -> None:
    settings = json.loads((run / "settings.json").read_text())
    settings["settings"]["tokens"]["codec_sha256"] = "0" * 64
    (run / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(BundleError, match="another codec"):
        from_run(run, bundle)


def test_clips_and_speakers() -> None:
    clips = clips_in(Path(__file__).parents[3] / "examples", 7.0)
    assert [(name, speaker) for name, speaker, _ in clips] == [("music", "music")]  # the other one has 6.3 s
    said = by_speaker([("1", "b", torch.zeros(2)), ("2", "a", torch.ones(1)), ("3", "b", torch.ones(3))])
    assert {name: samples.tolist() for name, samples in said.items()} == {"a": [1], "b": [0, 0, 1, 1, 1]}
    assert list(said) == ["a", "b"]


def test_rounded() -> None:
    assert rounded({"a": [1.23456, 2], "b": (True, None, "x")}) == {"a": [1.2346, 2], "b": [True, None, "x"]}
