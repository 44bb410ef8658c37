"""Training the codec of tones: resumed = uninterrupted to the bit, depths of rows, losses, averaged weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.codec.config import SourceFilterConfig
from model.codec.decoders.source_filter import SourceFilterDecoder
from model.constants import HOP_SAMPLES, LATENT_DIM, SAMPLE_RATE_HZ
from model.training.configs import SourceFilterTraining
from model.training.corpus import Corpus
from model.training.export import export_codec, find_codec
from model.training.loop import step_rng
from model.training.losses import ToneLoss
from model.training.train_codec import init_quantizer
from model.training.train_source_filter import (
    Heads,
    SourceFilterTrainer,
    pitch_amid,
    quantize_rows,
    train_source_filter,
)
from tests.support.states import same

CONFIG = SourceFilterConfig(frame_dim=16, frame_blocks=1, encoder_dim=16, encoder_blocks=1, codebooks=4)
TRAINING = SourceFilterTraining(
    steps=12, batch=2, frames=40, warmup=2, kmeans_at=(), waveform_from=4, envelope_from=8, rate=3e-3,
    depths=((1, 0.5), (4, 0.5)),
)  # fmt: skip


@pytest.fixture
def trainer(corpus: Corpus) -> SourceFilterTrainer:
    made = SourceFilterTrainer(CONFIG, TRAINING, corpus)
    samples, _ = made.batch(step_rng(0, 99))
    with torch.no_grad():
        latents = made.codec.encoder(samples[:, None]).transpose(1, 2).flatten(0, 1)
    init_quantizer(made.codec, latents.repeat(16, 1) + 0.01 * torch.randn(16 * len(latents), LATENT_DIM), 0.1)
    return made


def test_resumed_equals_uninterrupted(trainer: SourceFilterTrainer, corpus: Corpus, tmp_path: Path) -> None:
    for step in range(6):
        trainer.train_step(step)
    torch.save(trainer.state() | {"step": 6}, tmp_path / "cut.pt")
    resumed = SourceFilterTrainer(CONFIG, TRAINING, corpus)
    resumed.load(torch.load(tmp_path / "cut.pt", weights_only=True))
    assert resumed.step == 6
    for step in range(6, 10):
        assert trainer.train_step(step) == resumed.train_step(step)
    assert same(trainer.state(), resumed.state())


def test_stages_begin_at_their_steps(trainer: SourceFilterTrainer) -> None:
    tokens, samples, envelopes = (trainer.train_step(step) for step in (3, 4, 8))
    assert not {"waveform", "envelope", "idle"} & tokens.keys()
    assert {"waveform", "idle"} <= samples.keys() and "envelope" not in samples
    assert "envelope" in envelopes


def test_a_run_ends_in_a_codec_of_averaged_weights(corpus: Corpus, tmp_path: Path) -> None:
    training = SourceFilterTraining(steps=3, batch=2, frames=40, kmeans_at=(), waveform_from=0)
    assert list(train_source_filter(CONFIG, training, corpus, tmp_path)) == [1, 2, 3]
    export_codec(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    codec, _ = find_codec(tmp_path)
    for name, parameter in codec.named_parameters():
        torch.testing.assert_close(parameter.detach(), state["averaged"][name].half().float())
    assert not torch.equal(state["codec"]["decoder.head.weight"], state["averaged"]["decoder.head.weight"])
    with pytest.raises(ValueError, match="other settings"):
        list(train_source_filter(CONFIG, SourceFilterTraining(steps=4), corpus, tmp_path))


def test_frozen_tokens_stay(trainer: SourceFilterTrainer, corpus: Corpus) -> None:
    frozen = SourceFilterTrainer(CONFIG, SourceFilterTraining(**(vars(TRAINING) | {"freeze_tokens_from": 0})), corpus)
    frozen.codec.load_state_dict(trainer.codec.state_dict())
    before = {name: value.clone() for name, value in frozen.codec.state_dict().items()}
    for step in range(4, 7):
        frozen.train_step(step)
    for name, value in frozen.codec.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert not (moved and name.startswith(("encoder.", "quantizer."))), name
    assert not torch.equal(frozen.codec.state_dict()["decoder.head.weight"], before["decoder.head.weight"])


class TestQuantizeRows:
    def test_rows_hear_as_many_codebooks_as_they_are_told(self, trainer: SourceFilterTrainer) -> None:
        latents = torch.randn(3, LATENT_DIM, 7)
        depths = torch.tensor([1, 2, 4])
        total, first, _, codes = quantize_rows(trainer.codec, latents, depths, None)
        assert codes.shape == (3, 4, 7)
        assert torch.equal(codes, trainer.codec.quantize(latents))
        for row, depth in enumerate(depths.tolist()):
            wanted = trainer.codec.dequantize(codes[row : row + 1, :depth])
            torch.testing.assert_close(total[row : row + 1], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(first, trainer.codec.dequantize(codes[:, :1]), rtol=0, atol=1e-5)

    def test_gradient_passes_straight_through(self, trainer: SourceFilterTrainer) -> None:
        latents = torch.randn(1, LATENT_DIM, 3, requires_grad=True)
        total, *_ = quantize_rows(trainer.codec, latents, torch.tensor([4]), None)
        total.sum().backward()
        torch.testing.assert_close(latents.grad, torch.ones_like(latents))

    def test_redrawn_frames_keep_the_first_two_codebooks(self, trainer: SourceFilterTrainer) -> None:
        latents = torch.randn(1, LATENT_DIM, 50)
        for layer in trainer.codec.quantizer.vq.layers:
            layer._codebook.embed.normal_()
        training = SourceFilterTraining(**(vars(TRAINING) | {"redrawn": 1.0, "decay": 1.0}))
        total, _, _, codes = quantize_rows(trainer.codec, latents, torch.tensor([4]), training, step_rng(0, 0))
        rest = total - trainer.codec.dequantize(codes[:, :2])
        own = trainer.codec.dequantize(codes) - trainer.codec.dequantize(codes[:, :2])
        assert float((rest - own).abs().max()) > 1e-3
        books = trainer.codec.codebooks()
        pairs = (books[2][:, None] + books[3]).flatten(0, 1)
        assert float(torch.cdist(rest[0].T[:3], pairs).amin(1).max()) < 1e-2  # codes of the codebooks, only others


class TestToneLoss:
    def tone(self, hertz: float) -> Tensor:
        return 0.1 * torch.sin(2 * torch.pi * hertz * torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)[None]

    def test_is_zero_for_the_same_and_does_not_hear_phase(self) -> None:
        loss = ToneLoss(TRAINING)
        assert float(loss(self.tone(220), self.tone(220))) == pytest.approx(0.0, abs=1e-6)
        assert float(loss(-self.tone(220), self.tone(220))) == pytest.approx(0.0, abs=1e-6)

    def test_tells_neighbouring_low_notes(self) -> None:
        loss = ToneLoss(TRAINING)
        near, far = (float(loss(self.tone(hertz), self.tone(110.0))) for hertz in (110.0 * 2 ** (1 / 120), 116.5))
        assert near < 0.5 * far

    def test_silence_has_a_finite_gradient(self) -> None:
        made = torch.zeros(1, SAMPLE_RATE_HZ, requires_grad=True)
        ToneLoss(TRAINING)(made, torch.zeros(1, SAMPLE_RATE_HZ)).backward()
        assert bool(torch.isfinite(made.grad).all())  # type: ignore[arg-type]


def test_pitch_is_that_of_the_middle() -> None:
    """A glide: what is told of a frame is the pitch half a frame later than at its beginning."""
    time = torch.arange(2 * SAMPLE_RATE_HZ, dtype=torch.float64) / SAMPLE_RATE_HZ
    hertz = 120 * 2 ** (0.6 * time)
    phase = torch.cumsum(hertz, 0) / SAMPLE_RATE_HZ
    voice = sum(torch.sin(2 * torch.pi * k * phase) / k for k in range(1, 12))
    assert isinstance(voice, Tensor)
    found, voiced = pitch_amid(0.1 * voice.float()[None])
    middles = hertz[HOP_SAMPLES // 2 :: HOP_SAMPLES]
    inner = slice(10, -10)
    assert bool(voiced[0, inner].all())
    cents = 1200 * (found[0, inner].double() / middles[inner]).log2()
    assert abs(float(cents.mean())) < 2.0


def test_surprise_is_small_for_what_repeats() -> None:
    torch.manual_seed(0)
    heads = Heads(16)
    optimizer = torch.optim.Adam(heads.predictor.parameters(), lr=3e-3)
    pattern = torch.randn(1, LATENT_DIM, 4).repeat(1, 1, 10)
    for _ in range(150):
        loss = heads.surprise(pattern)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.4
    assert float(heads.surprise(torch.randn(1, LATENT_DIM, 40)).detach()) > 0.9


def test_what_a_kind_has_no_use_for_is_let_through_in_no_row_of_it() -> None:
    torch.manual_seed(0)
    decoder = SourceFilterDecoder(16, 1, 3, 7).eval()
    features = torch.randn(2, 10, 16)
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        whole = decoder.render(features)[0]
        parted, state = decoder.render(features, shares=shares)
        _, shapes, amplitudes = decoder.controls(features)
    assert not torch.equal(whole, parted)
    assert float(state.amplitudes[0].abs().max()) == 0.0
    torch.testing.assert_close(state.amplitudes[1], amplitudes[1, -1])
    assert float(state.levels[1, 0]) == 0.0 < float(state.levels[0, 0])
    assert shapes.shape[1] == 20
