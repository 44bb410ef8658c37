"""The token set: what the codec makes of the corpus, the same in one go and in two."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.codec.codec import Codec
from model.constants import HOP_SAMPLES
from model.lm.mel import LogMel
from model.training import token_set as tokens_module
from model.training.corpus import Corpus, DataError
from model.training.pauses import insert_pauses
from model.training.token_set import TokenSet, TokenSettings, build_tokens, document_samples

PLAIN = TokenSettings(augment=False, pause_every=0)
NAMES = ("codes", "mel_real", "mel_decoded")


@pytest.fixture(scope="module")
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec()


def contents(folder: Path) -> list[bytes]:
    return [(folder / f"{name}.bin").read_bytes() for name in NAMES]


def test_content_is_what_the_codec_makes(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    made = build_tokens(corpus, codec, "hash", PLAIN, tmp_path)
    assert len(made.documents) == 26
    assert sum(document.frames for document in made.documents) == len(made.codes) == 26 * 112  # 112.5 frames each
    mel = LogMel()
    heard = 0
    for document in made.documents:
        (clip,) = [clip for clip in corpus.clips if Path(clip.path).name == document.clip]
        assert document.group == clip.group
        rows = slice(document.start, document.start + document.frames)
        with torch.no_grad():
            samples = torch.from_numpy(corpus.read(clip))[None]
            codes = codec.encode(samples)
            decoded = {count: mel(codec.decode(codes[:, :count]))[0] for count in (2, 4, 8)}
        assert np.array_equal(made.codes[rows].T, codes[0].numpy())
        np.testing.assert_allclose(made.mel_real[rows], mel(samples)[0].numpy(), rtol=0, atol=5e-3)  # float16
        kept = torch.from_numpy(made.mel_decoded[rows].astype(np.float32))
        distances = {count: float((kept - wanted).abs().max()) for count, wanted in decoded.items()}
        assert min(distances.values()) < 1e-2  # one of the qualities that are served
        heard |= min(distances, key=lambda count: distances[count])
    assert heard == 2 | 4 | 8  # all of them occur


def test_speed_and_gain_are_the_settings(corpus: Corpus) -> None:
    """Of augmented copies whose speed and gain have no room to change, each is its clip."""
    still = TokenSettings(pause_every=0, longest_pause=0, speeds=(1.0, 1.0), gain_db=(0.0, 0.0))
    halved = replace(still, gain_db=(-20 * math.log10(2), -20 * math.log10(2)))
    slower = replace(still, speed_share=1.0, speeds=(0.5, 0.5))
    plain = list(document_samples(corpus, replace(PLAIN, longest_pause=0)))
    train = [index for index, one in enumerate(document_samples(corpus, slower)) if len(one) > len(plain[index])]
    assert len(train) > 10
    for index, (same, half) in enumerate(
        zip(document_samples(corpus, still), document_samples(corpus, halved), strict=True)
    ):
        np.testing.assert_array_equal(same, plain[index])
        if index in train:
            np.testing.assert_allclose(half, 0.5 * plain[index], atol=1e-6)


def test_splits_are_the_corpus(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    made = build_tokens(corpus, codec, "hash", PLAIN, tmp_path)
    for split in ("train", "valid"):
        groups = {clip.group for clip in corpus.split(split)}
        assert {document.group for document in made.of(split)} == groups
    assert len(made.of("valid")) == len(made.of("valid", "speech")) == 2 and not made.of("valid", "music")


def test_resumed_equals_at_once(corpus: Corpus, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between two records of its progress, with rows written that no record counts."""
    monkeypatch.setattr(tokens_module, "BATCH_SECONDS", 0.5)  # a batch a document
    settings = TokenSettings(document_seconds=0.5, seed=3)  # with augmentation: 78 documents
    whole = build_tokens(corpus, codec, "hash", settings, tmp_path / "whole")
    assert len(whole.documents) == 78
    quantize = codec.quantize
    calls: list[int] = []

    def fails_at_last(latents: Tensor) -> Tensor:
        calls.append(len(latents))
        if len(calls) > 60:
            raise KeyboardInterrupt
        return quantize(latents)

    monkeypatch.setattr(codec, "quantize", fails_at_last)
    with pytest.raises(KeyboardInterrupt):
        build_tokens(corpus, codec, "hash", settings, tmp_path / "cut")
    with pytest.raises(FileNotFoundError):
        TokenSet(tmp_path / "cut")
    calls.clear()

    def counted(latents: Tensor) -> Tensor:
        calls.append(1)
        return quantize(latents)

    monkeypatch.setattr(codec, "quantize", counted)
    resumed = build_tokens(corpus, codec, "hash", settings, tmp_path / "cut")
    assert len(calls) == 28  # 78 less the 50 that were recorded
    assert resumed.documents == whole.documents
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    build_tokens(corpus, codec, "hash", settings, tmp_path / "cut")
    assert len(calls) == 28  # done is done


@pytest.mark.parametrize("cut", ["progress", "index"])
def test_a_kill_within_a_record_costs_no_more_than_that_record(
    cut: str, corpus: Corpus, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_tokens(corpus, codec, "hash", PLAIN, tmp_path / "whole")
    write_text = Path.write_text

    def half(path: Path, text: str) -> int:
        if cut not in path.name:  # it is written beside itself, under another name
            return write_text(path, text)
        write_text(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        build_tokens(corpus, codec, "hash", PLAIN, tmp_path / "cut")
    monkeypatch.setattr(Path, "write_text", write_text)
    resumed = build_tokens(corpus, codec, "hash", PLAIN, tmp_path / "cut")
    assert resumed.documents == whole.documents
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("changed", [{"codec_sha256": "other"}, {"settings": TokenSettings(augment=False, seed=9)}])
def test_other_tokens_are_not_overwritten(
    corpus: Corpus, codec: Codec, tmp_path: Path, changed: dict[str, Any]
) -> None:
    build_tokens(corpus, codec, "hash", PLAIN, tmp_path)
    before = contents(tmp_path)
    wanted: dict[str, Any] = {"codec_sha256": "hash", "settings": PLAIN} | changed
    with pytest.raises(DataError, match="choose another folder"):
        build_tokens(corpus, codec, out=tmp_path, **wanted)
    assert contents(tmp_path) == before


def test_another_decoder_makes_the_decoded_mel_anew_and_nothing_else(
    corpus: Corpus, make_codec: Callable[..., Codec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TokenSettings(document_seconds=0.5, seed=3)  # with augmentation
    one, other = make_codec(), make_codec()
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.mul_(1.3)
    before = build_tokens(corpus, one, "hash", settings, tmp_path / "again")
    codes, real, decoded = contents(tmp_path / "again")
    fresh = build_tokens(corpus, other, "hash", settings, tmp_path / "fresh")
    monkeypatch.setattr(other, "quantize", None)  # decoding is enough
    again = build_tokens(corpus, other, "hash", settings, tmp_path / "again")
    assert contents(tmp_path / "again")[:2] == [codes, real] and again.documents == before.documents
    assert contents(tmp_path / "again")[2] != decoded
    np.testing.assert_allclose(again.mel_decoded, fresh.mel_decoded, rtol=0, atol=1e-2)  # float16
    assert again.made_from == before.made_from  # runs on these tokens can go on
    monkeypatch.setattr(other, "decode", None)
    build_tokens(corpus, other, "hash", settings, tmp_path / "again")  # done is done


def test_document_samples_are_what_the_tokens_are_of(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    settings = TokenSettings(document_seconds=0.5, seed=3)
    made, mel = build_tokens(corpus, codec, "hash", settings, tmp_path), LogMel()
    for document, samples in zip(made.documents, document_samples(corpus, settings), strict=True):
        wanted = mel(torch.from_numpy(samples)[None])[0].numpy()
        rows = slice(document.start, document.start + document.frames)
        np.testing.assert_allclose(made.mel_real[rows], wanted, rtol=0, atol=5e-3)  # float16


def test_takes_differ_and_are_for_training_only(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    plain = build_tokens(corpus, codec, "hash", PLAIN, tmp_path / "plain")
    made = build_tokens(corpus, codec, "hash", TokenSettings(takes=2), tmp_path / "two")
    assert len(made.of("train")) == 48 and len(made.of("valid")) == 2
    by_clip: dict[str, list[bytes]] = {}
    for document in made.documents:
        rows = slice(document.start, document.start + document.frames)
        by_clip.setdefault(document.clip, []).append(made.mel_real[rows].tobytes())
    assert all(len(set(takes)) == len(takes) for takes in by_clip.values())
    assert len({document.frames for document in made.of("train")}) > 10  # speeds
    assert {document.frames for document in made.of("valid")} == {112}  # validation hears the clips as they are
    for set_ in (plain, made):
        (first, *_) = sorted(set_.of("valid"), key=lambda document: document.clip)
        assert np.array_equal(
            set_.codes[first.start : first.start + 112], plain.codes[slice(*bounds(plain, first.clip))]
        )


def bounds(made: TokenSet, clip: str) -> tuple[int, int]:
    (document,) = [document for document in made.documents if document.clip == clip]
    return document.start, document.start + document.frames


def test_hours_bound_the_set(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    made = build_tokens(corpus, codec, "hash", TokenSettings(speech_hours=6 / 3600, augment=False), tmp_path)
    assert len(made.of("train")) == 4 and len(made.of("valid")) == 2  # 6 s at most of each split


def test_long_clips_are_cut(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    made = build_tokens(corpus, codec, "hash", TokenSettings(document_seconds=0.8, augment=False), tmp_path)
    assert sorted({document.frames for document in made.documents}) == [52, 60]
    assert all(document.frames * HOP_SAMPLES <= 0.8 * 24000 for document in made.documents)


def test_statistics_are_of_the_training_split(corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
    made = build_tokens(corpus, codec, "hash", PLAIN, tmp_path)
    rows = np.concatenate([np.arange(d.start, d.start + d.frames) for d in made.of("train")])
    mean, deviation = made.mel_statistics()
    wanted = made.mel_real[rows].astype(np.float64)
    np.testing.assert_allclose(mean, wanted.mean(0), atol=1e-3)
    np.testing.assert_allclose(deviation, np.maximum(wanted.std(0), 0.1), rtol=1e-2)
    unigram = made.unigram()
    assert float(unigram.exp().sum()) == pytest.approx(1.0)
    counts = np.bincount(made.codes[rows, 0], minlength=1024)
    np.testing.assert_allclose(unigram.exp(), (counts + 1) / (len(rows) + 1024), rtol=1e-9)
    levels = made.levels()
    assert np.bincount(levels).tolist() == [128] * 8
    loudness = {int(token): wanted[made.codes[rows, 0] == token].mean() for token in np.unique(made.codes[rows, 0])}
    in_order = sorted(loudness, key=lambda token: (loudness[token], token))
    assert sorted(in_order, key=lambda token: levels[token]) == in_order  # none is in a lower level than a quieter one


class TestPauses:
    """Pauses that are put in: where, of what, and that nothing else changes."""

    SETTINGS = TokenSettings(augment=False, longest_pause=0, pause_every=0.6, pause_seconds=(0.05, 0.2))

    def test_pauses_lie_where_they_are_said_to_and_sound_follows(self) -> None:
        samples = np.random.default_rng(0).uniform(0.5, 1.0, 72_000).astype(np.float32)
        pauses = ((10_000, 4_000, 0.0), (20_007, 6_400, 1e-3), (60_000, 3_200, 0.0))
        made, spans = insert_pauses(samples, pauses, np.random.default_rng(1))
        assert len(made) == len(samples) + 4_000 + 6_400, "the third would lie behind the end"
        rest = np.concatenate([made[:10_000], made[14_000:34_007], made[40_407:]])
        assert np.array_equal(rest, samples)
        assert not made[10_000:14_000].any()
        assert 0.9e-3 < made[34_007:40_407].std() < 1.1e-3
        assert spans == ((10_000 // 320, 14_000 // 320), (34_007 // 320, 40_407 // 320))

    def test_training_documents_alone_have_them(self, corpus: Corpus, codec: Codec, tmp_path: Path) -> None:
        made = build_tokens(corpus, codec, "hash", self.SETTINGS, tmp_path / "paused")
        plain = build_tokens(corpus, codec, "hash", PLAIN, tmp_path / "plain")
        assert not any(document.pauses for document in made.of("valid"))
        paused = [document for document in made.of("train") if document.pauses]
        assert len(paused) > 12 and TokenSet(tmp_path / "paused").documents == made.documents
        lengths = {document.clip: document.frames for document in plain.documents}
        for document in paused:
            added = sum(last - first for first, last in document.pauses)
            assert abs(document.frames - lengths[document.clip] - added) <= len(document.pauses)
            assert all(first < last < document.frames for first, last in document.pauses)
            levels = made.mel_real[document.start : document.start + document.frames].mean(1)
            inside = [frame for first, last in document.pauses for frame in range(first + 3, last)]  # past the window
            assert levels[inside].max() < np.median(levels)
