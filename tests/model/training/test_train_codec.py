"""Training the codec: resumed = uninterrupted to the bit, an initialisation that lives, codebooks that work."""

import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.decoders.frame import CausalConv
from model.constants import HOP_SAMPLES, LATENT_DIM, VOCABULARY
from model.training.corpus import Corpus
from model.training.loop import Run, step_rng
from model.training.losses import EnvelopeLoss, LoudnessLoss, SpectralLoss
from model.training.train_codec import (
    CodecTrainer,
    CodecTraining,
    crops,
    draw_codebooks,
    effective_dimensions,
    init_quantizer,
    initialise,
    kmeans,
    mixed_crops,
    restart_dead_codes,
    train_codec,
)

CONFIG = CodecConfig(n_filters=2, frame_dim=16, frame_blocks=2, lstm_layers=1, codebooks=2)
TRAINING = CodecTraining(steps=60, batch=2, seconds=0.5, warmup=5, rate=3e-3, kmeans_at=())


@pytest.fixture(scope="module")
def start(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec with its weights and codebooks initialised on 32 s, instead of the 300 s of a real run."""
    torch.manual_seed(0)
    codec = Codec(CONFIG)
    samples = crops(corpus, corpus.split("train"), 75, 32, step_rng(0, 0), TRAINING.crop_gain_db)
    initialise(codec, samples)
    with torch.no_grad():
        latents = codec.encoder(samples[:, None]).transpose(1, 2).flatten(0, 1)
    init_quantizer(codec, latents, expected=75 / VOCABULARY)
    path = tmp_path_factory.mktemp("start") / "checkpoint.pt"
    torch.save({"codec": codec.state_dict()}, path)
    return path


@pytest.fixture
def trainer(corpus: Corpus, start: Path) -> CodecTrainer:
    return started(corpus, start, TRAINING)


def started(corpus: Corpus, start: Path, training: CodecTraining) -> CodecTrainer:
    trainer = CodecTrainer(CONFIG, training, corpus)
    trainer.codec.load_state_dict(torch.load(start, weights_only=True)["codec"])
    return trainer


def tensors_in(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for key in state:
            yield from tensors_in(state[key])
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_in(value)


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    assert len(pairs) > 50
    return all(torch.equal(a, b) for a, b in pairs)


class TestResumed:
    def test_equals_uninterrupted_across_a_restart_of_dead_codes(
        self, corpus: Corpus, start: Path, trainer: CodecTrainer, tmp_path: Path
    ) -> None:
        """Step 49 restarts dead codes; the cut comes just before it."""
        cut = started(corpus, start, TRAINING)
        for step in range(46, 49):
            trainer.train_step(step)
            cut.train_step(step)
        torch.save(cut.state() | {"step": 49}, tmp_path / "cut.pt")
        torch.manual_seed(12345)  # what the global generator holds must not matter
        resumed = CodecTrainer(CONFIG, TRAINING, corpus)
        resumed.load(torch.load(tmp_path / "cut.pt", weights_only=True))
        assert resumed.step == 49
        for step in range(49, 52):
            figures = trainer.train_step(step)
            assert resumed.train_step(step) == figures
        assert same(trainer.state(), resumed.state())
        assert not same(trainer.state(), cut.state())

    def test_a_run_that_was_killed_goes_on_from_its_checkpoint(
        self, corpus: Corpus, start: Path, tmp_path: Path
    ) -> None:
        training = replace(TRAINING, steps=4, start_from=str(start))
        assert list(train_codec(CONFIG, training, corpus, tmp_path / "whole")) == [1, 2, 3, 4]
        wanted = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)

        settings = json.loads((tmp_path / "whole" / "settings.json").read_text())["settings"]
        first = started(corpus, start, training)
        run = Run(tmp_path / "cut", settings)
        going = run.steps(0, 4, first.train_step, first.state, save_seconds=0.0)
        assert [next(going), next(going)] == [1, 2]
        assert isinstance(going, Generator)
        going.close()  # the kill
        assert list(train_codec(CONFIG, training, corpus, tmp_path / "cut")) == [3, 4]
        assert same(torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True), wanted)


def test_a_log_line_that_a_kill_cut_off_does_not_stop_the_run(tmp_path: Path) -> None:
    """The resumed run's first entry lands on the same line; those after it are read."""
    run = Run(tmp_path, {})
    run.log(step=1, loss=3.0)
    with (tmp_path / "log.jsonl").open("a") as out:
        out.write('{"step": 2, "lo')
    run.log(step=2, loss=2.0)
    run.log(step=3, loss=1.0)
    assert run.history() == [{"step": 1, "loss": 3.0}, {"step": 3, "loss": 1.0}]
    assert run.plot() is not None


def test_the_loss_falls(trainer: CodecTrainer) -> None:
    losses = [trainer.train_step(step)["loss"] for step in range(35)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def test_a_run_from_nothing(corpus: Corpus, tmp_path: Path) -> None:
    """The whole initialisation, k-means on 300 s included; then there is nothing left to do."""
    config = replace(CONFIG, codebooks=1)
    training = replace(TRAINING, steps=1, batch=8, seconds=1.0)
    assert list(train_codec(config, training, corpus, tmp_path)) == [1]
    codec = Codec(config)
    codec.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["codec"])
    samples = crops(corpus, corpus.split("train"), 75, 16, step_rng(0, 0))
    with torch.no_grad():
        used = codec.encode(samples).unique()
    assert len(used) > 100
    assert "valid_log_mel_1" in (tmp_path / "log.jsonl").read_text()
    assert list(train_codec(config, training, corpus, tmp_path)) == []
    with pytest.raises(ValueError, match=r"other settings \(training\)"):
        list(train_codec(config, replace(training, batch=3), corpus, tmp_path))


def test_the_codec_of_a_frozen_encoder_keeps_its_tokens(corpus: Corpus, start: Path) -> None:
    trainer = started(corpus, start, replace(TRAINING, freeze_encoder_from=0))
    before = {name: value.clone() for name, value in trainer.codec.state_dict().items()}
    for step in (48, 49, 50):
        trainer.train_step(step)
    for name, value in trainer.codec.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == name.startswith("decoder."), name


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # the package uses torch's older weight norm
@pytest.mark.parametrize("kind", ["package", "light"])
def test_an_adversarial_step_moves_both(kind: Any, corpus: Corpus, start: Path, tmp_path: Path) -> None:
    training = replace(TRAINING, adversarial_from=1, adversary=kind)
    trainer = started(corpus, start, training)
    assert trainer.adversary is not None

    def snapshot() -> tuple[Tensor, Tensor]:
        assert trainer.adversary is not None
        parts = trainer.codec.parameters(), trainer.adversary.discriminator.parameters()
        first, second = (torch.cat([p.detach().flatten() for p in part]) for part in parts)
        return first, second

    codec, discriminator = snapshot()
    assert "adversarial" not in trainer.train_step(0)
    assert torch.equal(snapshot()[1], discriminator)
    figures = trainer.train_step(1)
    assert figures["discriminator"] > 0
    assert figures["features"] > 0
    assert np.isfinite(list(figures.values())).all()
    after = snapshot()
    assert not torch.equal(after[0], codec)
    assert not torch.equal(after[1], discriminator)
    assert all(torch.isfinite(part).all() for part in after)

    torch.save(trainer.state() | {"step": 2}, tmp_path / "checkpoint.pt")
    resumed = CodecTrainer(CONFIG, training, corpus)
    resumed.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert same(resumed.state(), trainer.state())


def test_silence_gives_finite_gradients(trainer: CodecTrainer) -> None:
    class Silent(Corpus):
        def __init__(self, corpus: Corpus) -> None:
            self.__dict__.update(corpus.__dict__)
            self.samples = np.zeros_like(corpus.samples)

    trainer.corpus = Silent(trainer.corpus)
    figures = trainer.train_step(0)
    assert np.isfinite(list(figures.values())).all()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.codec.parameters())


@pytest.mark.parametrize("decoder", ["frame", "harmonic", "seanet"])
def test_lsuv_gives_unit_deviation(corpus: Corpus, decoder: Any) -> None:
    torch.manual_seed(1)
    codec = Codec(replace(CONFIG, decoder=decoder))
    samples = crops(corpus, corpus.split("train"), 75, 8, step_rng(0, 1), TRAINING.crop_gain_db)
    initialise(codec, samples)
    deviations: dict[str, float] = {}

    def measured(name: str) -> Any:
        return lambda module, inputs, output: deviations.__setitem__(name, float(output.std()))

    for name, module in codec.named_modules():
        plain = isinstance(module, nn.Conv1d | nn.ConvTranspose1d)
        if plain and not (isinstance(module, CausalConv) and module.groups > 1):
            module.register_forward_hook(measured(name))
    with torch.no_grad():
        made = codec.decoder(codec.encoder(samples[:, None]))
    assert len(deviations) > 10
    last = max(deviations, key=list(deviations).index) if decoder == "seanet" else None
    for name, deviation in deviations.items():
        assert deviation == pytest.approx(0.1 if name == last else 1.0, rel=1e-2), name
    assert made.std() < 0.3  # quiet, so that the first gradients are not


def test_what_the_optimisers_go_by_is_in_the_settings(corpus: Corpus) -> None:
    training = replace(
        TRAINING,
        betas=(0.7, 0.9),
        weight_decay=0.02,
        adversarial_from=0,
        adversary="light",
        adversarial_betas=(0.4, 0.8),
    )
    trainer = CodecTrainer(CONFIG, training, corpus)
    assert trainer.adversary is not None
    assert (trainer.optimizer.defaults["betas"], trainer.optimizer.defaults["weight_decay"]) == ((0.7, 0.9), 0.02)
    assert trainer.adversary.optimizer.defaults["betas"] == (0.4, 0.8)


class TestCrops:
    def test_each_row_is_a_piece_of_one_clip(self, corpus: Corpus) -> None:
        clips = corpus.split("train")
        rows = crops(corpus, clips, 20, 6, step_rng(0, 2))
        assert rows.shape == (6, 20 * HOP_SAMPLES)
        for row in rows.numpy():
            pieces = [np.lib.stride_tricks.sliding_window_view(corpus.read(clip), len(row)) for clip in clips]
            assert any((piece[:, :8] == row[:8]).all(1).any() and (piece == row).all(1).any() for piece in pieces)

    def test_a_short_clip_is_followed_by_silence(self, corpus: Corpus) -> None:
        clip = corpus.split("train")[0]
        (row,) = crops(corpus, [clip], 200, 1, step_rng(0, 3)).numpy()
        np.testing.assert_array_equal(row[: clip.length], corpus.read(clip))
        assert not row[clip.length :].any()

    def test_augmented_rows_stay_in_range(self, corpus: Corpus) -> None:
        rows = crops(corpus, corpus.split("train"), 20, 32, step_rng(0, 4), TRAINING.crop_gain_db)
        assert rows.abs().max() <= 1.0

    def test_gain_is_the_settings(self, corpus: Corpus) -> None:
        plain, doubled = (
            crops(corpus, corpus.split("train"), 20, 32, step_rng(0, 4), gain) for gain in (None, (6.0206, 6.0206))
        )
        torch.testing.assert_close(doubled.abs(), (2 * plain.abs()).clamp_max(1.0), rtol=1e-4, atol=1e-6)
        assert 0 < int(((doubled * plain).sum(1) < 0).sum()) < 32  # polarity is drawn

    def test_a_step_draws_the_same_again(self, corpus: Corpus) -> None:
        draws = [mixed_crops(corpus, TRAINING, step_rng(0, step)) for step in (5, 5, 6)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


class TestQuantizer:
    def test_kmeans_finds_clusters(self) -> None:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(20, LATENT_DIM, generator=generator) * 10
        which = torch.arange(2000) % 20
        points = centres[which] + 0.1 * torch.randn(2000, LATENT_DIM, generator=generator)
        found = kmeans(points, 200)  # many more than there are, so that the random start misses none
        nearest = torch.cdist(centres, found).min(1).values
        assert nearest.max() < 1.0

    def test_codebooks_are_used_and_each_leaves_less_over(self) -> None:
        torch.manual_seed(2)
        codec = Codec(replace(CONFIG, codebooks=3))
        latents = torch.randn(4096, 12) @ torch.randn(12, LATENT_DIM)
        init_quantizer(codec, latents, expected=0.5)
        codes = codec.quantize(latents.T[None])
        for book in range(3):
            assert len(codes[0, book].unique()) > 0.9 * VOCABULARY
        left = [float((latents.T - codec.dequantize(codes[:, : k + 1])[0]).square().mean()) for k in range(3)]
        assert latents.square().mean() > 2 * left[0] > 3 * left[1] > 3 * left[2] > 0

    def test_dead_codes_restart_from_residuals(self) -> None:
        torch.manual_seed(3)
        codec = Codec(CONFIG)
        latents = torch.randn(2, LATENT_DIM, 40)
        first, second = (layer._codebook for layer in codec.quantizer.vq.layers)
        for book in (first, second):
            book.embed.normal_()
            book.cluster_size.fill_(1.0)
        first.cluster_size[[3, 900]] = 0.1
        second.cluster_size[7] = 0.0
        before = [book.embed.clone() for book in (first, second)]
        count = restart_dead_codes(codec, latents, 1.0, 0.2, torch.Generator().manual_seed(0))
        assert count == 3
        vectors = latents.transpose(1, 2).flatten(0, 1)
        for code in (3, 900):
            assert (vectors == first.embed[code]).all(1).any()
        residuals = vectors - before[0][torch.cdist(vectors, before[0]).argmin(1)]
        assert (residuals == second.embed[7]).all(1).any()
        for book, old, dead in ((first, before[0], [3, 900]), (second, before[1], [7])):
            alive = torch.ones(VOCABULARY, dtype=torch.bool)
            alive[dead] = False
            assert torch.equal(book.embed[alive], old[alive])
            assert (book.cluster_size == 1.0).all()  # a new code gets time
            torch.testing.assert_close(book.embed_avg[dead], book.embed[dead])
        assert restart_dead_codes(codec, latents, 1.0, 0.2, torch.Generator()) == 0

    def test_codebooks_are_dropped_as_the_recipe_says(self) -> None:
        draws = [draw_codebooks(step_rng(0, step), 8, CodecTraining.depths) for step in range(4000)]
        for count, share in ((1, 0.15), (2, 0.15), (4, 0.20), (8, 0.50)):
            assert draws.count(count) / 4000 == pytest.approx(share, abs=0.03)
        assert {draw_codebooks(step_rng(0, step), 2, CodecTraining.depths) for step in range(100)} == {1, 2}

    def test_effective_dimensions(self) -> None:
        torch.manual_seed(4)
        ball = torch.randn(20_000, 16)
        assert effective_dimensions(ball) == pytest.approx(16, rel=0.02)
        assert effective_dimensions(torch.randn(1000, 1) * torch.randn(1, 16)) == pytest.approx(1, rel=1e-4)


@pytest.fixture
def pair(speech_like: Tensor) -> tuple[Tensor, Tensor]:
    return speech_like[None, :24_000], speech_like[None, 48_000:72_000]


def test_spectral_loss_measures_distance(pair: tuple[Tensor, Tensor]) -> None:
    loss, (real, other) = SpectralLoss(), pair
    log_mel, convergence = loss(real, real)
    assert log_mel == convergence == 0.0
    near, far = loss(real * 1.1, real), loss(other, real)
    assert 0 < near[0] < far[0]
    assert 0 < near[1] < far[1]
    assert loss(-real, real)[0] == pytest.approx(0.0, abs=1e-4)  # blind to polarity


def test_envelope_loss_hears_words_and_not_their_level(pair: tuple[Tensor, Tensor]) -> None:
    loss, (real, other) = EnvelopeLoss(), pair
    assert loss(real, real) == pytest.approx(0.0, abs=0.05)  # its floor weighs on very quiet bands
    assert loss(-0.5 * real, real) == pytest.approx(float(loss(real, real)), abs=0.05)
    assert loss(other, real) > 0.3
    assert torch.isfinite(loss(torch.zeros_like(real), torch.zeros_like(real)))


def test_loudness_loss_minds_added_sound_more_than_missing_sound(pair: tuple[Tensor, Tensor]) -> None:
    loss, (real, other) = LoudnessLoss(), pair
    assert loss(real, real) == pytest.approx(0.001, abs=1e-4)  # the root's floor
    assert loss(real * 10, real * 10) == pytest.approx(float(loss(real, real)), abs=1e-4)
    assert loss(other * 0.1, real * 0.1) == pytest.approx(float(loss(other, real)), rel=1e-3)  # only levels differ
    hiss = 0.2 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    assert loss(real + hiss, real) > 1.3 * loss(real, real + hiss)
    assert loss(real + 0.1 * hiss, real) < 0.5 * loss(real + hiss, real)
    assert torch.isfinite(loss(torch.zeros_like(real), torch.zeros_like(real)))
