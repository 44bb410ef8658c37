"""The table: its controls are what they say, its intervals are right, and a run that was cut off goes on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from benchmarks.quality import table as table_module
from benchmarks.quality.compare_bundles import compare
from benchmarks.quality.table import Plan, Row, Table, first_frames, main
from benchmarks.quality.table_data import (
    LEAK_SAMPLES,
    Variant,
    build_leaky,
    leaky_mel,
    relabelled,
    shuffled_rows,
)
from benchmarks.quality.table_report import Bootstrap, summary, tables
from model.checkpoint import random_bundle, save_bundle, tokeniser_sha256
from model.codec.codec import Codec
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.lm.config import PRESETS
from model.lm.mel import LOG_FLOOR, LogMel, mel_filter_bank
from model.training.corpus import Corpus, build_corpus, is_valid_group
from model.training.loop import Run
from model.training.token_set import Document, TokenSet, TokenSettings, build_tokens
from model.training.train_lm import document_batch, train_lm
from tests.support.signals import enliven, make_speech_like

ROOT = Path(__file__).resolve().parents[3]
PLAIN = TokenSettings(augment=False)


@pytest.mark.parametrize("frame", [0, 1, 17, 40])
def test_the_leaky_mel_sees_the_next_frame_and_the_causal_one_does_not(frame: int) -> None:
    samples = torch.randn(1, 60 * HOP_SAMPLES, generator=torch.Generator().manual_seed(0))
    changed = samples.clone()
    changed[:, HOP_SAMPLES * (frame + 1) :] += 1.0
    causal, leaky = LogMel(), leaky_mel
    assert torch.equal(causal(samples)[:, : frame + 1], causal(changed)[:, : frame + 1])
    assert not torch.equal(leaky(samples)[:, frame], leaky(changed)[:, frame])
    beyond = samples.clone()
    beyond[:, HOP_SAMPLES * (frame + 1) + LEAK_SAMPLES :] += 1.0
    assert torch.equal(leaky(samples)[:, : frame + 1], leaky(beyond)[:, : frame + 1])


def test_the_leaky_mel_is_a_centred_stft() -> None:
    samples = make_speech_like(1.0)[: 70 * HOP_SAMPLES]
    spectrum = torch.stft(
        samples,
        1024,
        HOP_SAMPLES,
        window=torch.hann_window(1024),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    wanted = torch.log(spectrum.abs().T @ mel_filter_bank() + LOG_FLOOR)[:70]
    torch.testing.assert_close(leaky_mel(samples[None])[0], wanted, rtol=0, atol=1e-4)


def document(start: int, frames: int, kind: str = "speech", group: str = "a", split: Any = "train") -> Document:
    return Document(start, frames, kind, group, split, f"{group}-{start}.wav")


def test_shuffling_keeps_the_marginal_and_breaks_the_alignment() -> None:
    documents = [document(0, 400), document(400, 300, "music"), document(700, 300, split="valid"), document(1000, 500)]
    order = shuffled_rows(documents, 1500)
    assert np.array_equal(np.sort(order), np.arange(1500))
    assert np.array_equal(order, shuffled_rows(documents, 1500))  # fixed
    parts = {"train": np.r_[0:400, 1000:1500], "music": np.r_[400:700], "valid": np.r_[700:1000]}
    for rows in parts.values():
        assert np.array_equal(np.sort(order[rows]), rows)  # the same mel frames, of the same split and kind
        assert np.corrcoef(order[rows], rows)[0, 1] < 0.2  # in an order that tells nothing of the old one


def test_validation_holds_the_bundles_own_and_cuts_through_no_group() -> None:
    documents = [
        document(100 * i, 100, group=f"speaker{i // 2}", split="valid" if i < 4 else "train") for i in range(400)
    ]
    some = relabelled(documents, 12)
    splits: dict[str, set[str]] = {}
    for one in some:
        splits.setdefault(one.group, set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())
    assert all(one.split == "valid" for one in some[:4])
    assert 0.05 < np.mean([one.split == "valid" for one in some]) < 0.25
    assert {one.split for one in relabelled(documents, 100)} == {"valid"}
    large = [document(0, 10_000, group=f"speaker{i}") for i in range(5)]
    assert {one.split for one in relabelled(large, 99)} == {"train"}


NAMES = sorted((f"speaker{number}" for number in range(500)), key=lambda name: not is_valid_group(name, 0.0))


def folder_of_speakers(folder: Path, count: int, first: int = 0) -> Path:
    """The first few of ``NAMES`` are for validation."""
    sound = make_speech_like(6.0, seed=first)
    for number, name in enumerate([*NAMES[:3], *NAMES[100:]][first : first + count]):
        path = folder / name / f"{name}.wav"
        path.parent.mkdir(parents=True)
        start = 3000 * number
        soundfile.write(path, (sound[start : start + 40_000] * 0.5).numpy(), SAMPLE_RATE_HZ)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus([folder_of_speakers(tmp_path_factory.mktemp("audio"), 24)], tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokens(corpus: Corpus, make_codec: Callable[..., Codec], tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    settings = TokenSettings(document_seconds=1.0)  # with augmentation, and clips in two pieces
    made = build_tokens(corpus, make_codec(), "hash", settings, tmp_path_factory.mktemp("tokens"))
    build_leaky(corpus, settings, made)
    return made


def test_variants_differ_in_their_mel_alone(tokens: TokenSet) -> None:
    variants = {mel: Variant(tokens.folder, mel) for mel in ("real", "decoded", "shuffled", "leaky")}
    one = variants["real"].of("valid")[0]
    batches = {mel: document_batch(variant, one) for mel, variant in variants.items()}
    for mel, batch in batches.items():
        assert torch.equal(batch.codes, batches["real"].codes) and torch.equal(batch.inputs, batches["real"].inputs)
        assert (mel == "real") == torch.equal(batch.mel, batches["real"].mel)
        assert variants[mel].made_from["mel"] == mel
        assert {d.group for d in variants[mel].of("train")}.isdisjoint({d.group for d in variants[mel].of("valid")})
    rows = slice(one.start, one.start + one.frames)
    assert np.array_equal(variants["decoded"].mel_real[rows], tokens.mel_decoded[rows])
    for split in ("train", "valid"):
        where = np.concatenate([np.arange(d.start, d.start + d.frames) for d in variants["real"].of(split)])
        real, shuffled = (np.asarray(variants[mel].mel_real[where], np.float32) for mel in ("real", "shuffled"))
        assert np.array_equal(np.sort(real, axis=0), np.sort(shuffled, axis=0))
        apart = [float(np.corrcoef(real[:, band], shuffled[:, band])[0, 1]) for band in (5, 20, 40)]
        assert np.abs(apart).max() < 0.3


def test_the_leaky_file_is_of_the_samples_that_the_tokens_are_of(tokens: TokenSet) -> None:
    """The centred slice lies between the causal ones of its frame and the next, and is nearer to both than chance."""
    leaky = Variant(tokens.folder, "leaky")
    for one in leaky.documents[:10]:
        rows = slice(one.start, one.start + one.frames)
        ours, causal = (np.asarray(x[rows], np.float32) for x in (leaky.mel_real, tokens.mel_real))
        error = {
            shift: np.abs(ours[10:-10] - causal[10 + shift : len(causal) - 10 + shift]).mean() for shift in (0, 1, 8)
        }
        assert max(error[0], error[1]) < 0.6 * error[8]


def test_bootstrap_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(1).normal(3.0, 0.5, 400)
    figure = Bootstrap(np.full(400, 7.0)).figure(7.0 * values[None])
    assert figure["mean"] == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert figure["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert figure["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_weighs_by_frames_and_pairs_differences() -> None:
    rng = np.random.default_rng(2)
    frames = rng.integers(50, 500, 80)
    hard = rng.normal(3.0, 1.0, 80)  # differs much from clip to clip
    one = np.stack([frames * (hard + 0.01 * seed) for seed in range(3)])
    boot = Bootstrap(frames)
    assert boot.mean(one) == pytest.approx(float((frames * hard).sum() / frames.sum()) + 0.01)
    apart = boot.difference(one - 0.2 * frames, one)
    assert all(apart[name] == pytest.approx(-0.2) for name in ("mean", "low", "high"))  # what is common cancels
    assert boot.figure(one)["high"] - boot.figure(one)["low"] > 0.3


def test_bootstrap_knows_that_seeds_differ() -> None:
    frames = np.full(200, 100)
    same = np.repeat(frames[None] * 3.0, 3, axis=0)
    other = frames[None] * (3.0 + np.array([[-0.1], [0.0], [0.1]]))
    boot = Bootstrap(frames)
    assert boot.figure(same)["high"] == pytest.approx(boot.figure(same)["low"])
    figure = boot.figure(other)
    assert figure["low"] == pytest.approx(2.9) and figure["high"] == pytest.approx(3.1)


ROWS = (
    Row("gpt-s", "gpt-tiny", "real", (3e-3, 1e-2)),
    Row("hybrid-4m", "tiny", "real", (3e-3, 1e-2)),
    Row("hybrid-4m, leaky mel", "tiny", "leaky", (3e-3, 1e-2)),
    Row("gpt-l", "gpt-tiny", "real", (3e-3, 1e-2), repeats=False),
    Row("gpt-l, twice as long", "gpt-tiny", "real", (3e-3, 1e-2), repeats=False, times=2),
)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Speech of 24 speakers to train on and 3 to test on, a bundle, rows of the tiniest presets: seconds, not hours."""
    monkeypatch.setitem(PRESETS, "gpt-tiny", replace(PRESETS["tiny"], mel=False))
    monkeypatch.setattr(table_module, "ROWS", ROWS)
    monkeypatch.setattr(Run, "plot", lambda self: None)
    monkeypatch.setattr(Run, "steps", partialmethod(Run.steps, save_seconds=-1.0))
    folder_of_speakers(tmp_path / "speech" / "train", 24)
    folder_of_speakers(tmp_path / "speech" / "test", 3, first=100)
    bundle = random_bundle("tiny")
    enliven(bundle.codec, make_speech_like(4.0))
    save_bundle(bundle, tmp_path / "bundle")
    sizes = {"steps": 8, "seeds": 2, "batch": 2, "length": 32}
    folders = {"speech": "speech", "codec": "bundle", "work": "work", "corpus": "corpus", "out": "table.json"}
    named = [f"--{name}={tmp_path / path}" for name, path in folders.items()]
    return [*named, *(f"--{name}={size}" for name, size in sizes.items())]


def test_from_folders_to_figures_and_on_after_a_kill(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(arguments)
    out = tmp_path / "table.json"
    report = json.loads(out.read_text())
    assert set(report["rows"]) == {"unigram", *(row.name for row in ROWS)}
    assert [len(report["rows"][row.name]["seeds"]) for row in ROWS] == [2, 2, 2, 1, 1]
    for row in report["rows"].values():
        figures = row["speech"]
        assert figures["nll"]["low"] <= figures["nll"]["mean"] <= figures["nll"]["high"]
        assert figures["perplexity"]["mean"] == pytest.approx(np.exp(figures["nll"]["mean"]))
        assert figures["bits_per_second"]["mean"] == pytest.approx(figures["nll"]["mean"] / np.log(2) * 75)
    assert report["rows"]["gpt-s"]["tokens"] == 8 * 2 * 32
    assert report["rows"]["gpt-s"]["curves"][0][-1][0] == 8
    assert report["rows"]["gpt-l, twice as long"]["tokens"] == 2 * 8 * 2 * 32
    assert report["rows"]["gpt-l, twice as long"]["curves"][0][-1][0] == 16
    assert set(report["sweep"]) == {"gpt-tiny", "tiny"} and len(report["sweep"]["tiny"]) == 2
    assert len(report["utterances"]["speech"]["clips"]) == 3
    text = "\n".join(tables(report))
    assert "hybrid-4m, leaky mel" in text and f"{report['rows']['gpt-l']['speech']['nll']['mean']:.3f}" in text

    trained: list[Path] = []

    def watched(*values: Any) -> Iterator[int]:
        trained.append(values[3])
        yield from train_lm(*values)

    monkeypatch.setattr(table_module, "train_lm", watched)
    main(arguments)
    assert trained == []  # a finished run is not repeated
    assert {**json.loads(out.read_text()), "conditions": 0} == {**report, "conditions": 0}

    cut = tmp_path / "work" / "runs" / f"hybrid-4m-rate{report['rows']['hybrid-4m']['rate']:g}-seed1"
    before = json.loads((cut / "result.json").read_text())
    for path in cut.iterdir():
        path.unlink()

    def killed(*values: Any) -> Iterator[int]:
        for done in train_lm(*values):
            yield done
            if done == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(table_module, "train_lm", killed)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert not (cut / "result.json").exists() and (cut / "checkpoint.pt").exists()
    monkeypatch.setattr(table_module, "train_lm", watched)
    main(arguments)
    assert trained == [cut]
    after = json.loads((cut / "result.json").read_text())
    assert {**after, "seconds": 0, "curve": 0} == {**before, "seconds": 0, "curve": 0}


def test_other_settings_are_refused(arguments: list[str]) -> None:
    main([*arguments, "--only=gpt-s", "--seeds=1"])
    with pytest.raises(ValueError, match="other settings"):
        main([*arguments, "--only=gpt-s", "--seeds=1", "--steps=6"])


def test_only_rows_that_exist(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--only=gpt-xl"])
    assert "gpt-xl" in capsys.readouterr().err


def test_rates_come_from_validation_alone(tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rate is taken, by the preset's first row, and the choice never opens the test clips."""
    table = Table(tmp_path, Plan(rows=ROWS), "cpu", ("speech",))
    asked: list[tuple[str, int, bool]] = []

    def measured(self: Table, row: Row, rate: float, seed: int, test: bool) -> dict[str, Any]:
        asked.append((row.name, seed, test))
        return {"valid": {"speech": [{"nll": 100.0 * (1 + rate), "frames": 50}]}}

    monkeypatch.setattr(Table, "run", measured)
    rate, losses = table.sweep(ROWS[2])
    assert rate == 3e-3 and losses == pytest.approx({"0.003": 2.006, "0.01": 2.02})
    assert asked == [("hybrid-4m", 0, False)] * 2


def test_first_frames() -> None:
    documents = [document(0, 40), document(40, 40), document(80, 40)]
    assert [len(first_frames(documents, frames)) for frames in (1, 40, 41, 1000)] == [1, 1, 2, 3]


def test_summary_of_two_kinds() -> None:
    def result(row: str, nll: float, seed: int = 0) -> dict[str, Any]:
        of = {
            kind: [{"clip": f"{i}", "frames": 10, "nll": 10 * (nll + i), "correct": i} for i in range(4)]
            for kind in ("speech", "music")
        }
        return {"row": row, "seed": seed, "parameters": 4_000_000, "tokens": 5, "test": of, "curve": []}

    found = summary(
        [result("gpt-s", 2.0), result("gpt-s", 2.2, 1), result("hybrid-4m", 1.9), result("hybrid-4m", 2.1, 1)]
    )
    apart = found["differences"]["hybrid-4m - gpt-s"]
    for kind in ("speech", "music"):
        assert apart[kind]["nll"]["mean"] == pytest.approx(-0.1) == apart[kind]["nll"]["high"]
        assert found["rows"]["gpt-s"][kind]["nll_per_seed"] == [3.5, 3.7]

    def alone(row: str, nll: float, kind: str) -> dict[str, Any]:
        whole = result(row, nll)
        return whole | {"test": {kind: whole["test"][kind]}}

    found = summary([result("hybrid-4m", 1.9), alone("hybrid-4m, speech alone", 1.8, "speech")])
    pair = found["differences"]["hybrid-4m - hybrid-4m, speech alone"]
    assert set(pair) == {"speech"} and pair["speech"]["nll"]["mean"] == pytest.approx(0.1)
    assert "music" not in found["rows"]["hybrid-4m, speech alone"]


def test_one_kind_alone_sees_as_many_tokens_of_it() -> None:
    """Step by step what a row of both kinds sees of it; nothing else differs."""
    plan = Plan(steps=600)
    assert plan.tokens_seen("speech") + plan.tokens_seen("music") == plan.tokens_seen()
    both, speech, music = (plan.training(1e-3, 0, kind) for kind in ("", "speech", "music"))
    assert (speech.steps, speech.music_share) == (420, 0.0) and (music.steps, music.music_share) == (180, 1.0)
    assert replace(speech, steps=600, music_share=0.3) == both == replace(music, steps=600, music_share=0.3)


def test_bundles_are_compared_on_validation(tokens: TokenSet, make_codec: Callable[..., Codec]) -> None:
    """Equal bundles do not differ; what `score` says of a clip is what the comparison says."""
    codec, bundle = make_codec(), random_bundle("tiny")
    bundle.codec = codec
    other = random_bundle("tiny")
    other.codec = codec
    fine_head = other.lm.fine.heads[2]
    assert isinstance(fine_head, nn.Linear)
    with torch.no_grad():
        other.lm.head.weight.mul_(30.0)
        fine_head.weight.mul_(30.0)
    tokens.made_from["codec_sha256"] = tokeniser_sha256(codec)
    same = compare(bundle, bundle, tokens)["speech"]
    assert same["tokens"] == sum(one.frames for one in tokens.of("valid"))
    assert all(row["difference"]["high"] == 0.0 for row in same.values() if isinstance(row, dict))
    found = compare(bundle, other, tokens)["speech"]
    assert found["real"]["difference"]["high"] < 0 and found["book 4"]["difference"]["high"] < 0
    assert found["book 3"]["difference"]["high"] == 0.0
    assert found["fine"]["first"]["mean"] == pytest.approx(
        np.mean([found[f"book {book}"]["first"]["mean"] for book in range(2, 9)])
    )
