"""Discriminators: shapes, where gradients go, who learns, and a round that resumes to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.training.configs import AdversaryKind
from model.training.discriminator import (
    Adversary,
    LightDiscriminator,
    Round,
    SpectrumDiscriminator,
    feature_distance,
    hinge_made,
    hinge_real_fake,
    make_discriminator,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # the package uses torch's older one
KINDS: tuple[AdversaryKind, ...] = ("package", "light")


@pytest.fixture
def pair(speech_like: Tensor) -> tuple[Tensor, Tensor]:
    """Made and real samples, (2, 9600) each."""
    real = torch.stack([speech_like[:9600], speech_like[30_000:39_600]])
    return real.sign() * real.abs().clamp_max(0.02), real


def small() -> LightDiscriminator:
    torch.manual_seed(0)
    return LightDiscriminator(windows=(512, 256), periods=(3,), channels=4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_discriminator_judges_each_row(kind: AdversaryKind, pair: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    discriminator = make_discriminator(kind).eval()
    logits, features = discriminator(pair[1])
    assert len(logits) == len(features) >= 3
    assert all(len(x) == 2 and torch.isfinite(x).all() for x in logits)
    assert all(len(layer) == 2 for layers in features for layer in layers)
    alone, _ = discriminator(pair[1][1:])
    for both, one in zip(logits, alone, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-4)


def test_frequency_is_strided_and_time_is_not(pair: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    logits, features = SpectrumDiscriminator(512, 4)(pair[1])
    frames = 1 + (9600 - 512) // 128
    assert [tuple(x.shape) for x in features] == [(2, 4, frames, bins) for bins in (65, 33, 17, 9)]
    assert logits.shape == (2, 1, frames, 9)


def test_hinge_losses_are_zero_for_the_winner() -> None:
    sure, unsure = [torch.full((2, 3), 2.0)], [torch.full((2, 3), -2.0)]
    assert hinge_real_fake(sure, unsure) == 0.0
    assert hinge_real_fake(unsure, sure) == 6.0
    assert hinge_made(sure) == -2.0
    assert hinge_made(unsure) == 2.0


def test_features_of_the_same_sound_have_no_distance(pair: tuple[Tensor, Tensor]) -> None:
    made, real = pair
    discriminator = small()
    of_real, of_made = discriminator(real)[1], discriminator(made)[1]
    assert feature_distance(of_real, of_real) == 0.0
    assert feature_distance(of_real, of_made) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_teaches_the_discriminator_and_pulls_the_samples(
    kind: AdversaryKind, pair: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    adversary = Adversary(make_discriminator(kind), 1e-3)
    made, real = pair[0].clone().requires_grad_(), pair[1].clone()
    before = [parameter.detach().clone() for parameter in adversary.discriminator.parameters()]
    one = adversary.round(made, real)
    assert made.grad is None  # the pull is handed back, not left in the graph
    assert one.pull.shape == made.shape
    assert torch.isfinite(one.pull).all()
    assert (one.pull.norm(dim=1) > 0).all()
    moved = [not torch.equal(a, b) for a, b in zip(before, adversary.discriminator.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_the_pull_is_the_gradient_of_the_decoders_loss(pair: tuple[Tensor, Tensor]) -> None:
    """Against a plain backward pass with the weights before the step."""
    made, real = pair
    discriminator = small()
    expected = made.clone().requires_grad_()
    logits, features = discriminator(expected)
    (hinge_made(logits) + 2.0 * feature_distance(discriminator(real)[1], features)).backward()
    pull = Adversary(discriminator, 1e-3, feature_weight=2.0).round(made, real).pull
    assert expected.grad is not None
    torch.testing.assert_close(pull, expected.grad)


def test_the_discriminator_learns_to_tell_them_apart(pair: tuple[Tensor, Tensor]) -> None:
    adversary = Adversary(small(), 3e-3)
    losses = [float(adversary.round(*pair).judged) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_pull_takes_a_share_of_the_other_gradient() -> None:
    pull = Round(torch.tensor([[3.0, 4.0]]), *torch.zeros(3))
    torch.testing.assert_close(pull.scaled(torch.tensor([[0.0, 20.0]]), 0.5), torch.tensor([[6.0, 8.0]]))
    nothing = Round(torch.zeros(1, 2), *torch.zeros(3))
    assert torch.equal(nothing.scaled(torch.ones(1, 2), 0.5), torch.zeros(1, 2))


def test_silence_gives_a_finite_pull() -> None:
    silence = torch.zeros(2, 9600)
    assert torch.isfinite(Adversary(small(), 1e-3).round(silence, silence).pull).all()


def test_resumed_equals_uninterrupted(pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    whole = Adversary(small(), 1e-3)
    for _ in range(3):
        whole.round(*pair)
    torch.save(whole.state(), tmp_path / "state.pt")
    torch.manual_seed(9)
    resumed = Adversary(LightDiscriminator(windows=(512, 256), periods=(3,), channels=4), 1e-3)
    resumed.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        one, other = whole.round(*pair), resumed.round(*pair)
        assert torch.equal(one.pull, other.pull)
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = list(
        zip(whole.discriminator.parameters(), resumed.discriminator.parameters(), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in pairs)
