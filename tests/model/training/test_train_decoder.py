"""Training a decoder alone: the tokens stay to the bit, codes are the corpus's own, resumed = uninterrupted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import tokeniser_sha256
from model.codec.codec import Codec
from model.codec.decoders.harmonic import HarmonicDecoder
from model.constants import HOP_SAMPLES
from model.training.code_set import CodeSet, build_codes
from model.training.corpus import Corpus, DataError
from model.training.export import export_codec, find_codec
from model.training.loop import step_rng
from model.training.pitch import MEASURE
from model.training.pitch_targets import heard_pitch, with_oscillators
from model.training.train_decoder import DecoderTrainer, DecoderTraining, coded_crops, train_decoder

TRAINING = DecoderTraining(steps=6, batch=2, frames=40, context=4, adversary="light", adversarial_from=1, warmup=2)
HOURS = {"speech": 0.005, "music": 0.0}


@pytest.fixture
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec(codebooks=2).requires_grad_(True)


@pytest.fixture(scope="module")
def codes(make_codec: Callable[..., Codec], corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> CodeSet:
    return build_codes(corpus, make_codec(codebooks=2), HOURS, tmp_path_factory.mktemp("codes"))


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class TestCodes:
    def test_are_those_of_the_whole_clip(self, codec: Codec, codes: CodeSet) -> None:
        for coded in (codes.clips[0], codes.clips[-1]):
            samples = torch.from_numpy(codes.corpus.read(coded.clip))
            with torch.no_grad():
                whole = codec.encode(samples[None])[0].T.numpy()
            assert coded.frames == len(samples) // HOP_SAMPLES
            assert (codes.read(coded, 0, coded.frames) == whole).mean() > 0.99  # chunks and batches round differently

    def test_hold_all_of_the_validation_split_and_some_of_training(self, codes: CodeSet) -> None:
        valid = {clip.path for clip in codes.corpus.split("valid")}
        assert {coded.clip.path for coded in codes.split("valid")} == valid
        train = codes.split("train")
        seconds = sum(coded.clip.length for coded in train) / 24_000
        assert 18.0 <= seconds < 20.0  # 0.005 h, and the clip that fills it
        assert not {coded.clip.path for coded in train} & valid
        assert codes.split("train", "music") == []

    def test_are_made_once(self, codec: Codec, corpus: Corpus, tmp_path: Path) -> None:
        first = build_codes(corpus, codec, {"speech": 0.001}, tmp_path)
        changed = (tmp_path / "codes.i16").stat().st_mtime_ns
        again = build_codes(corpus, codec, {"speech": 0.001}, tmp_path)
        assert (tmp_path / "codes.i16").stat().st_mtime_ns == changed
        assert again.clips == first.clips
        more = build_codes(corpus, codec, {"speech": 0.002}, tmp_path)
        assert len(more.clips) > len(first.clips)

    def test_crops_are_aligned_with_their_samples(self, codec: Codec, codes: CodeSet) -> None:
        """The codes of the crop's own samples, encoded with their history, are the crop's."""
        clips = [codes.split("train")[0]]
        tokens, samples = coded_crops(codes, clips, 20, 10, 3, step_rng(0, 0))
        assert tokens.shape == (3, 30, 2)
        assert samples.shape == (3, 20 * HOP_SAMPLES)
        whole = codes.read(clips[0], 0, clips[0].frames)
        audio = codes.corpus.read(clips[0].clip)
        for row in range(3):
            starts = [s for s in range(len(whole) - 29) if (whole[s : s + 30] == tokens[row].numpy()).all()]
            pieces = [audio[(s + 10) * HOP_SAMPLES : (s + 30) * HOP_SAMPLES] for s in starts]
            assert any(np.array_equal(piece, samples[row].numpy()) for piece in pieces)

    def test_a_short_clip_is_filled_with_silence(self, codes: CodeSet) -> None:
        coded = codes.clips[0]
        tokens, samples = coded_crops(codes, [coded], 400, 10, 1, step_rng(0, 0))
        heard = (coded.frames - 10) * HOP_SAMPLES
        np.testing.assert_array_equal(
            samples[0, :heard], codes.corpus.read(coded.clip)[10 * HOP_SAMPLES : coded.frames * HOP_SAMPLES]
        )
        assert not samples[0, heard:].any()
        assert not tokens[0, coded.frames :].any()


class TestSteps:
    def test_only_the_decoder_learns_and_its_average_lags(self, codec: Codec, codes: CodeSet) -> None:
        trainer = DecoderTrainer(codec, TRAINING, codes)
        tokeniser, before = tokeniser_sha256(codec), flat(codec.decoder)
        figures = [trainer.train_step(step) for step in range(4)]
        assert all(np.isfinite(list(entry.values())).all() for entry in figures)
        assert tokeniser_sha256(codec) == tokeniser
        moved, lag = (flat(codec.decoder) - before).norm(), (flat(trainer.average) - before).norm()
        assert 0 < lag < 0.1 * moved

    def test_the_discriminator_has_a_head_start(self, codec: Codec, codes: CodeSet) -> None:
        trainer = DecoderTrainer(codec, TRAINING, codes)
        assert trainer.adversary is not None
        decoder, judge = flat(codec.decoder), flat(trainer.adversary.discriminator)
        trainer.train_step(0)
        assert torch.equal(flat(codec.decoder), decoder)
        assert not torch.equal(flat(trainer.adversary.discriminator), judge)
        trainer.train_step(1)
        assert not torch.equal(flat(codec.decoder), decoder)

    def test_distances_fall_without_an_adversary(self, codec: Codec, codes: CodeSet) -> None:
        trainer = DecoderTrainer(codec, replace(TRAINING, adversarial_from=-1, rate=3e-3, steps=60, batch=4), codes)
        assert trainer.adversary is None
        losses = [trainer.train_step(step)["loss"] for step in range(30)]
        assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:6])

    def test_rows_hear_fewer_codebooks_at_times(self, codec: Codec, codes: CodeSet) -> None:
        trainer = DecoderTrainer(codec, replace(TRAINING, batch=32), codes)
        latents, real, speech, told = trainer.batch(step_rng(0, 0), 32, 40)
        assert speech.all() and speech.shape == told.shape == (32,)
        assert latents.shape == (32, 128, 44)
        assert real.shape == (32, 40 * HOP_SAMPLES)
        books = codec.codebooks().detach()
        first = torch.stack([torch.cdist(row.T, books[0]).min(1).values.max() for row in latents])
        assert 0 < int((first < 0.1).sum()) < 32  # those of one codebook, and the others

    def test_validation_names_what_it_measures(self, codec: Codec, codes: CodeSet) -> None:
        figures = DecoderTrainer(codec, TRAINING, codes).validate(seconds=1.0)
        assert {"valid_speech_log_mel", "valid_speech_pitch"} <= figures.keys()
        assert np.isfinite(list(figures.values())).all()


class TestOscillators:
    @pytest.fixture
    def harmonic(self, codec: Codec) -> Codec:
        torch.manual_seed(4)
        return with_oscillators(codec)

    def test_are_put_beside_the_frames(self, codec: Codec, harmonic: Codec) -> None:
        assert isinstance(harmonic.decoder, HarmonicDecoder)
        assert tokeniser_sha256(harmonic) == tokeniser_sha256(codec)
        assert with_oscillators(harmonic) is harmonic
        codes = torch.randint(0, 1024, (1, 2, 30), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            harmonic.decoder.reader.share.bias.fill_(-20.0)
            torch.testing.assert_close(harmonic.decode(codes), codec.decode(codes), atol=1e-6, rtol=0)
            harmonic.decoder.reader.share.bias.fill_(20.0)
            assert (harmonic.decode(codes) - codec.decode(codes)).std() > 0.1 * codec.decode(codes).std()

    def test_need_frames(self, make_codec: Callable[..., Codec]) -> None:
        with pytest.raises(DataError, match="frame"):
            with_oscillators(make_codec(decoder="seanet"))

    def test_the_reader_learns_alone_and_then_with_the_frames(self, harmonic: Codec, codes: CodeSet) -> None:
        decoder = harmonic.decoder
        assert isinstance(decoder, HarmonicDecoder)
        trainer = DecoderTrainer(harmonic, replace(TRAINING, reader_steps=2, reader_batch=2), codes)
        parts = decoder.frame, decoder.reader
        before = [flat(part) for part in parts]
        assert {"pitch_distance", "share_distance"} <= trainer.train_step(0).keys()
        assert torch.equal(flat(parts[0]), before[0]) and not torch.equal(flat(parts[1]), before[1])
        for step in (2, 3):  # the first is the discriminator's head start
            trainer.train_step(step)
        assert not torch.equal(flat(parts[0]), before[0])

    def test_the_reader_finds_the_pitch(self, harmonic: Codec, codes: CodeSet) -> None:
        settings = replace(TRAINING, reader_steps=120, reader_batch=4, reader_rate=3e-3, adversarial_from=-1)
        trainer = DecoderTrainer(harmonic, settings, codes)
        missed = [trainer.train_step(step)["pitch_distance"] for step in range(60)]
        assert np.mean(missed[-10:]) < 0.8 * np.mean(missed[:3])

    def test_shares_do_not_learn_from_a_pitch_that_they_were_told(self, harmonic: Codec, codes: CodeSet) -> None:
        """They are to know how far the pitch that is read can be trusted."""
        decoder = harmonic.decoder
        assert isinstance(decoder, HarmonicDecoder)
        for told in (0.0, 1.0):
            trainer = DecoderTrainer(harmonic, replace(TRAINING, true_pitch=told, pitch_weight=0.0), codes)
            made, misread = trainer._sung(trainer.batch(step_rng(0, 0), 2, 40))
            assert misread is not None and made.shape == (2, 40 * HOP_SAMPLES)
            (gradient,) = torch.autograd.grad(made.square().sum(), decoder.reader.share.bias, allow_unused=True)
            assert (gradient is None or not gradient.any()) == (told == 1.0)

    def test_resumed_equals_uninterrupted(self, codec: Codec, codes: CodeSet, tmp_path: Path) -> None:
        settings = replace(TRAINING, reader_steps=2, reader_batch=2)

        def fresh() -> DecoderTrainer:
            torch.manual_seed(4)
            return DecoderTrainer(with_oscillators(codec), settings, codes)

        whole = fresh()
        for step in range(5):
            whole.train_step(step)
            if step == 0:
                torch.save(whole.state() | {"step": 1}, tmp_path / "checkpoint.pt")
        resumed = fresh()
        resumed.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
        for step in range(resumed.step, 5):
            resumed.train_step(step)
        found, wanted = resumed.state()["codec"], whole.state()["codec"]
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())

    def test_a_run_gives_a_harmonic_codec_with_the_same_tokens(
        self, codec: Codec, corpus: Corpus, tmp_path: Path
    ) -> None:
        training = replace(TRAINING, decoder="harmonic", reader_steps=1, reader_batch=2, steps=2, adversarial_from=-1)
        assert list(train_decoder(codec, training, corpus, tmp_path)) == [1, 2, 3]
        export_codec(tmp_path)
        found, sha256 = find_codec(tmp_path)
        assert sha256 == tokeniser_sha256(codec)
        assert found.config.decoder == "harmonic"
        assert list(train_decoder(codec, training, corpus, tmp_path)) == []


def test_music_has_no_pitch() -> None:
    real = torch.sin(2 * torch.pi * 200 * torch.arange(2 * 9600) / 24_000).reshape(2, -1)
    hertz, voiced = heard_pitch(real, torch.tensor([True, False]), MEASURE)
    assert voiced[0, 3:-3].all() and not voiced[1].any()
    assert hertz[0, 5].item() == pytest.approx(200, rel=5e-3)


def test_resumed_equals_uninterrupted(codec: Codec, codes: CodeSet, tmp_path: Path) -> None:
    start = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    whole = DecoderTrainer(codec, TRAINING, codes)
    for step in range(3):
        whole.train_step(step)
    torch.save(whole.state() | {"step": 3}, tmp_path / "checkpoint.pt")
    for step in range(3, 5):
        whole.train_step(step)
    wanted = whole.state()
    wanted = {name: tensor.clone() for name, tensor in wanted["codec"].items()}
    codec.load_state_dict(start)
    torch.manual_seed(77)
    resumed = DecoderTrainer(codec, TRAINING, codes)
    resumed.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert resumed.step == 3
    for step in range(3, 5):
        resumed.train_step(step)
    found = resumed.state()["codec"]
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert not torch.equal(wanted["decoder.head.weight"], start["decoder.head.weight"])


def test_a_run_gives_a_codec_with_the_same_tokens(codec: Codec, corpus: Corpus, tmp_path: Path) -> None:
    training = replace(TRAINING, steps=3, speech_hours=0.005)
    wanted = tokeniser_sha256(codec)
    assert list(train_decoder(codec, training, corpus, tmp_path)) == [1, 2, 3]
    export_codec(tmp_path)
    found, sha256 = find_codec(tmp_path)
    assert sha256 == wanted
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    averaged = state["codec"]["decoder.head.weight"]
    torch.testing.assert_close(found.state_dict()["decoder.head.weight"], averaged.half().float())
    assert not torch.equal(averaged, state["decoder"]["head.weight"])
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["tokeniser"] == wanted
    assert list(train_decoder(codec, training, corpus, tmp_path)) == []
