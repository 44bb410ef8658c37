"""Training of the language model: resumed = uninterrupted to the bit, and batches that hold what they should."""

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import Bundle, BundleError, load_bundle, save_bundle, tokeniser_sha256
from model.codec.codec import Codec
from model.lm.config import PRESETS
from model.lm.hybrid_lm import BOS, HybridLM
from model.lm.mel import LOG_FLOOR
from model.lm.transformer import Block
from model.training.corpus import Corpus
from model.training.loop import Run
from model.training.pauses import deep_silence
from model.training.token_set import TokenSet, TokenSettings, build_tokens
from model.training.train_lm import (
    Batches,
    LMTrainer,
    LMTraining,
    Stream,
    document_batch,
    initialise,
    train_lm,
)
from tests.support.states import same

CONFIG = PRESETS["tiny"]
TRAINING = LMTraining(steps=6, batch=4, length=64, warmup=2)
DEVIATION = torch.ones(64)


@pytest.fixture(scope="module")
def tokens(corpus: Corpus, make_codec: Callable[..., Codec], tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return build_tokens(
        corpus, make_codec(), "hash", TokenSettings(takes=2, pause_every=1.0), tmp_path_factory.mktemp("tokens")
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step, and no plots."""
    monkeypatch.setattr(Run, "steps", partialmethod(Run.steps, save_seconds=-1.0))
    monkeypatch.setattr(Run, "plot", lambda self: None)


def run(tokens: TokenSet, out: Path, training: LMTraining, stop: int | None = None) -> dict[str, Any]:
    """Train up to a step, or to the end; returns the checkpoint."""
    steps = train_lm(CONFIG, training, tokens, out)
    for done in steps:
        if done == stop:
            assert isinstance(steps, Generator)
            steps.close()
            break
    state: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return state


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resumed_equals_uninterrupted(tokens: TokenSet, tmp_path: Path, stop: int) -> None:
    whole = run(tokens, tmp_path / "whole", TRAINING)
    part = run(tokens, tmp_path / "cut", TRAINING, stop)
    assert part["step"] == stop and whole["step"] == 6
    assert not same(part["model"], whole["model"])
    resumed = run(tokens, tmp_path / "cut", TRAINING)
    assert same(resumed, whole)
    last = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("whole", "cut")]
    assert last[0]["valid_speech"] == last[1]["valid_speech"]


def test_targets_in_pauses_that_were_put_in_do_not_count(tokens: TokenSet) -> None:
    trainer = LMTrainer(CONFIG, plain(), tokens)
    stream = Stream(tokens.of("train"), 0, 0)
    wanted = {d.start + frame for d in tokens.of("train") for first, last in d.pauses for frame in range(first, last)}
    frames, _ = stream.frames(0, sum(document.frames for document in tokens.of("train")))
    assert wanted and set(frames[stream.in_pause(frames)].tolist()) == wanted
    batch = next(found for step in range(50) if not (found := trainer.batches(step)).judged.all())
    none = torch.zeros(0, dtype=torch.int64)
    other = replace(batch, codes=torch.where(batch.judged[..., None], batch.codes, (batch.codes + 1) % 1024))
    with torch.no_grad():
        assert torch.equal(trainer._losses(batch, none)[0], trainer._losses(other, none)[0])
        changed = replace(batch, codes=(batch.codes + 1) % 1024)
        assert not torch.equal(trainer._losses(batch, none)[0], trainer._losses(changed, none)[0])


@pytest.mark.usefixtures("quick")
def test_other_settings_are_another_run(tokens: TokenSet, tmp_path: Path) -> None:
    short = replace(TRAINING, steps=2)
    one = run(tokens, tmp_path / "one", short)
    assert not same(one["model"], run(tokens, tmp_path / "two", replace(short, seed=1))["model"])
    with pytest.raises(ValueError, match="training"):
        run(tokens, tmp_path / "one", replace(short, seed=1))


@pytest.mark.usefixtures("quick")
def test_a_run_can_begin_with_the_weights_of_another(tokens: TokenSet, tmp_path: Path) -> None:
    first = run(tokens, tmp_path / "first", replace(TRAINING, steps=3))
    checkpoint = str(tmp_path / "first" / "checkpoint.pt")
    still = replace(TRAINING, steps=3, rate=0.0, seed=5, start_from=checkpoint)
    second = run(tokens, tmp_path / "second", still)
    assert same(second["model"], first["model"])  # nothing was learned since
    moving = replace(still, rate=1e-3)
    whole, cut = run(tokens, tmp_path / "whole", moving), run(tokens, tmp_path / "cut", moving, stop=2)
    assert not same(whole["model"], first["model"])
    (tmp_path / "first" / "checkpoint.pt").rename(tmp_path / "away")  # resuming asks for its own checkpoint alone
    assert same(run(tokens, tmp_path / "cut", moving), whole) and cut["step"] == 2


@pytest.mark.usefixtures("quick")
def test_no_beginning_with_weights_for_other_tokens(
    tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tokens, tmp_path / "first", replace(TRAINING, steps=1))
    monkeypatch.setitem(tokens.made_from, "codec_sha256", "other")
    with pytest.raises(ValueError, match="another codec"):
        run(tokens, tmp_path / "second", replace(TRAINING, start_from=str(tmp_path / "first" / "checkpoint.pt")))


@pytest.fixture(scope="module")
def own_tokens(corpus: Corpus, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Of the codec in `bundle`."""
    sha256 = tokeniser_sha256(bundle.codec)
    return build_tokens(corpus, bundle.codec, sha256, TokenSettings(), tmp_path_factory.mktemp("own_tokens"))


@pytest.fixture(scope="module")
def start(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle on disk, in float16 as bundles are."""
    folder = tmp_path_factory.mktemp("start") / "bundle"
    save_bundle(bundle, folder)
    return folder


@pytest.mark.usefixtures("quick")
def test_a_run_can_begin_with_a_bundle(own_tokens: TokenSet, start: Path, tmp_path: Path) -> None:
    """Its weights as it is served, mel statistics among them, and float32, so that small steps are not lost."""
    still = replace(TRAINING, steps=3, rate=0.0, start_from=str(start))
    begun = run(own_tokens, tmp_path / "still", still)
    assert same(begun["model"], load_bundle(start).lm.state_dict())
    assert {tensor.dtype for tensor in begun["model"].values() if tensor.is_floating_point()} == {torch.float32}
    moving = replace(still, rate=1e-3)
    whole, cut = run(own_tokens, tmp_path / "whole", moving), run(own_tokens, tmp_path / "cut", moving, stop=2)
    assert not same(whole["model"], begun["model"])
    assert cut["step"] == 2 and same(run(own_tokens, tmp_path / "cut", moving), whole)


@pytest.mark.usefixtures("quick")
def test_no_beginning_with_a_bundle_that_does_not_fit(
    tokens: TokenSet, own_tokens: TokenSet, start: Path, tmp_path: Path
) -> None:
    """Of another codec, of another shape, damaged."""
    begin = replace(TRAINING, start_from=str(start))
    with pytest.raises(ValueError, match="another codec"):
        run(tokens, tmp_path / "codec", begin)
    with pytest.raises(ValueError, match="another shape"):
        list(train_lm(replace(CONFIG, layers=1), begin, own_tokens, tmp_path / "shape"))
    (tmp_path / "no bundle").mkdir()
    with pytest.raises(BundleError, match=r"config\.json is missing"):
        run(own_tokens, tmp_path / "none", replace(TRAINING, start_from=str(tmp_path / "no bundle")))


@pytest.mark.parametrize("preset", ["with mel", "without mel"])
def test_loss_falls(tokens: TokenSet, preset: str) -> None:
    config = replace(CONFIG, mel=preset == "with mel")
    trainer = LMTrainer(config, replace(TRAINING, steps=60, rate=1e-2, warmup=5, fine_positions=1.0), tokens)
    figures = [trainer.train_step(step) for step in range(60)]
    assert figures[0]["loss"] == pytest.approx(np.log(1024), abs=0.2)
    for name in ("loss", "fine"):
        first, last = (np.mean([figure[name] for figure in part]) for part in (figures[:5], figures[-5:]))
        assert last < first - 0.5, name
    valid = trainer.validate()
    assert valid.keys() == {"valid_speech", "valid_speech_fine", "valid_speech_unigram"}
    assert valid["valid_speech"] < np.log(1024)


@pytest.mark.parametrize("preset", ["hybrid-4m", "gpt-s"])
def test_a_training_begins_with_signals_of_unit_size(preset: str) -> None:
    """Keys tell tokens apart, features of the mel are as large as embeddings, and the first guess is uniform."""
    torch.manual_seed(0)
    model = HybridLM(PRESETS[preset])
    initialise(model)
    tokens = torch.randint(0, 1024, (2, 100))
    first = model.stack.blocks[0]
    assert isinstance(first, Block)
    with torch.no_grad():
        embedded = model.embedding(tokens)
        keys = first.attention.qkv(first.attention_norm(torch.randn(2, 100, 256)))
        logits = model.logits(model(tokens, torch.randn(2, 100, 64)))
        assert 0.9 < float(embedded.std()) < 1.1 and 0.9 < float(keys.std()) < 1.1
        if model.mel is not None:
            features = model.mel(torch.randn(2, 100, 64), torch.zeros(2, 100, dtype=torch.bool))
            assert 0.7 < float(features.std()) < 1.4
    assert float(logits.logsumexp(-1).mean()) == pytest.approx(np.log(1024), abs=0.2)


def test_statistics_are_in_the_model(tokens: TokenSet) -> None:
    trainer = LMTrainer(CONFIG, TRAINING, tokens)
    mean, deviation = tokens.mel_statistics()
    assert torch.equal(trainer.model.mel_mean, mean) and torch.equal(trainer.model.mel_std, deviation)


def test_weights_that_decay_are_the_matrices(tokens: TokenSet) -> None:
    groups = LMTrainer(CONFIG, TRAINING, tokens).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0] and all(group["params"] for group in groups)
    assert all(parameter.dim() >= 2 for parameter in groups[0]["params"])
    assert all(parameter.dim() < 2 for parameter in groups[1]["params"])


def test_validation_that_is_not_finite_stops_the_run(tokens: TokenSet) -> None:
    trainer = LMTrainer(CONFIG, TRAINING, tokens)
    with torch.no_grad():
        trainer.model.head.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="valid_speech"):
        trainer.validate()


def test_a_stream_is_every_document_once(tokens: TokenSet) -> None:
    documents = tokens.of("train")
    total = sum(document.frames for document in documents)
    frames, starts = Stream(documents, seed=0, epoch=0).frames(0, total)
    assert sorted(frames) == sorted(
        row for document in documents for row in range(document.start, document.start + document.frames)
    )
    assert sorted(frames[starts]) == sorted(document.start for document in documents)
    inside = ~starts[1:]
    assert (np.diff(frames)[inside] == 1).all()
    some, of_them = Stream(documents, seed=0, epoch=0).frames(100, 300)
    assert np.array_equal(some, frames[100:400]) and np.array_equal(of_them, starts[100:400])
    assert not np.array_equal(Stream(documents, seed=0, epoch=1).frames(0, total)[0], frames)


def plain(**changes: Any) -> LMTraining:
    """No noise and no masks: what is left is the data."""
    return replace(TRAINING, **({"noise": 0.0, "masked_share": 0.0, "span_share": 0.0} | changes))


@pytest.mark.parametrize("decoded", [0.0, 1.0])
def test_batches_hold_the_tokens(tokens: TokenSet, decoded: float) -> None:
    """Each target's input is the frame before it, its code and its slice, or BOS and no slice at a document's start."""
    batches = Batches(tokens, plain(decoded_share=decoded), DEVIATION)
    source = tokens.mel_decoded if decoded else tokens.mel_real
    first_rows = {document.start for document in tokens.of("train")}
    led_by_bos = 0
    for step in range(4):
        batch = batches(step)
        assert batch.inputs.shape == batch.masked.shape == (4, 64) and batch.codes.shape == (4, 64, 8)
        for row in range(4):
            frames, _, _ = batches._row("speech", 4 * step + row, 64)
            starts = torch.tensor([frame in first_rows for frame in frames])
            assert np.array_equal(batch.codes[row].numpy(), tokens.codes[frames])
            assert torch.equal(batch.masked[row], starts) and torch.equal(batch.inputs[row] == BOS, starts)
            before = frames[~starts.numpy()] - 1
            assert np.array_equal(batch.inputs[row, ~starts].numpy(), tokens.codes[before, 0])
            assert np.array_equal(batch.mel[row, ~starts].numpy(), source[before].astype(np.float32))
            assert (np.diff(frames)[~starts.numpy()[1:]] == 1).all()
            led_by_bos += int(starts.sum())
    assert led_by_bos > 3


def test_batches_repeat_and_differ(tokens: TokenSet) -> None:
    one, two = Batches(tokens, TRAINING, DEVIATION), Batches(tokens, TRAINING, DEVIATION)
    for step in (3, 1, 2, 3):  # in any order
        a, b = one(step), two(step)
        assert all(torch.equal(x, vars(b)[name]) for name, x in vars(a).items())
    assert not torch.equal(one(0).codes, one(1).codes)
    rows = one(0).codes
    assert not torch.equal(rows[0], rows[1])


def test_long_sequences_come_last(tokens: TokenSet) -> None:
    batches = Batches(tokens, replace(TRAINING, steps=8), DEVIATION)
    assert [tuple(batches(step).inputs.shape) for step in range(8)] == [(4, 64)] * 6 + [(2, 128)] * 2


@pytest.mark.parametrize(("size", "share"), [(4, 0.3), (2, 0.3), (1, 0.5), (3, 0.0), (3, 1.0)])
def test_music_gets_its_share_and_no_window_is_left_out(
    tokens: TokenSet, monkeypatch: pytest.MonkeyPatch, size: int, share: float
) -> None:
    """Also where the share of a batch is no whole number of rows."""
    halves = [replace(document, kind=("speech", "music")[i % 2]) for i, document in enumerate(tokens.of("train"))]
    monkeypatch.setattr(tokens, "documents", halves)
    batches = Batches(tokens, plain(batch=size, steps=100, long_from=2.0, music_share=share), DEVIATION)
    asked: list[tuple[str, int]] = []
    window = batches._row

    def watched(kind: str, number: int, length: int) -> Any:
        asked.append((kind, number))
        return window(kind, number, length)

    monkeypatch.setattr(batches, "_row", watched)
    for step in range(20):
        assert batches(step).inputs.shape == (size, 64)
    for kind, wanted in (("music", 20 * size * share), ("speech", 20 * size * (1 - share))):
        assert [number for name, number in asked if name == kind] == list(range(round(wanted)))


def test_a_first_epoch_uses_everything_once(tokens: TokenSet) -> None:
    """Windows of an epoch do not overlap, but for the one that wraps."""
    batches = Batches(tokens, plain(long_from=2.0, batch=1), DEVIATION)
    total = sum(document.frames for document in tokens.of("train"))
    seen = np.concatenate([batches._row("speech", number, 64)[0] for number in range(total // 64)])
    assert len(np.unique(seen)) > 0.95 * len(seen)


def test_masks_as_the_settings_say(tokens: TokenSet) -> None:
    whole = Batches(tokens, plain(masked_share=1.0), DEVIATION)(0)
    assert whole.masked.all()
    spans = Batches(tokens, plain(span_share=1.0), DEVIATION)(0)
    assert spans.masked.any(1).all() and not spans.masked.all()
    shares = [Batches(tokens, replace(TRAINING, batch=16), DEVIATION)(step).masked.all(1) for step in range(4)]
    assert 0 < float(torch.cat(shares).float().mean()) < 0.6  # 10 % whole, and spans that happen to cover all of 64


def test_noise_is_on_decoded_slices_only(tokens: TokenSet) -> None:
    for share, noisy in ((0.0, False), (1.0, True)):
        clean, loud = (Batches(tokens, plain(decoded_share=share, noise=n), DEVIATION)(0) for n in (0.0, 0.5))
        assert torch.equal(clean.codes, loud.codes)
        difference = (clean.mel - loud.mel)[~clean.masked].abs()
        assert bool(difference.any()) == noisy
        assert difference.std() < 0.5


def test_document_batch(tokens: TokenSet) -> None:
    document = tokens.of("valid")[0]
    for decoded, source in ((False, tokens.mel_real), (True, tokens.mel_decoded)):
        batch = document_batch(tokens, document, decoded)
        rows = slice(document.start, document.start + document.frames)
        assert batch.inputs[0, 0] == BOS and batch.masked[0].tolist() == [True] + [False] * (document.frames - 1)
        assert np.array_equal(batch.codes[0].numpy(), tokens.codes[rows])
        assert torch.equal(batch.inputs[0, 1:], batch.codes[0, :-1, 0])
        np.testing.assert_array_equal(batch.mel[0, 1:].numpy(), source[rows][:-1].astype(np.float32))


def test_a_kind_that_is_shorter_than_a_sequence(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little music beside much speech: training must not stop when the sequences become long."""
    (one, *rest) = tokens.of("train")
    monkeypatch.setattr(tokens, "documents", [replace(one, kind="music"), *rest])
    batches = Batches(tokens, replace(TRAINING, batch=8, long_from=0.5), DEVIATION)
    assert one.frames < 128
    assert [tuple(batches(step).inputs.shape) for step in (0, 5)] == [(8, 64), (4, one.frames)]


def test_no_documents(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "documents", [])
    with pytest.raises(ValueError, match="no training documents"):
        Batches(tokens, TRAINING, DEVIATION)


def test_what_lies_deep_in_a_silence_does_not_count(tokens: TokenSet) -> None:
    mel = np.zeros((80, 64), np.float32)
    mel[20:50] = np.log(LOG_FLOOR)  # digital silence
    assert np.flatnonzero(deep_silence(mel, 0.2, 0.02)).tolist() == list(range(35, 50)), "0.2 s count, and the end"
    found, everything = Batches(tokens, plain(judged_silence=0.04), DEVIATION), Batches(tokens, plain(), DEVIATION)
    deep = np.concatenate(
        [deep_silence(tokens.mel_real[d.start : d.start + d.frames].astype(np.float32), 0.04, 0.02)
         for d in sorted(tokens.documents, key=lambda document: document.start)]
    )  # fmt: skip
    total = sum(document.frames for document in tokens.of("train"))
    left_out = 0
    for number in range(total // 64):
        (frames, _, judged), (_, _, before) = (made._row("speech", number, 64) for made in (found, everything))
        np.testing.assert_array_equal(judged, before & ~deep[frames])
        left_out += int((before & ~judged).sum())
    assert left_out > 0
