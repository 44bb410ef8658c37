"""The depth decoder: step by step = teacher-forced, and blind to the codes that it has yet to draw."""

import pytest
import torch
from torch import Tensor

from model.config import DecoderConfig
from model.constants import VOCABULARY
from model.fine import DepthDecoder


@pytest.fixture(scope="module")
def fine() -> DepthDecoder:
    torch.manual_seed(0)
    fine = DepthDecoder(DecoderConfig(dim=32, heads=2, mel=False, fine_dim=16)).requires_grad_(False)
    for parameter in fine.parameters():
        if parameter.dim() == 2:
            parameter *= 10
    return fine


@pytest.fixture(scope="module")
def frames() -> tuple[Tensor, Tensor]:
    """hidden (2, 5, 32), codes (2, 5, 8)"""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 32, generator=generator), torch.randint(0, VOCABULARY, (2, 5, 8), generator=generator)


def test_steps_equal_teacher_forcing(fine: DepthDecoder, frames: tuple[Tensor, Tensor]) -> None:
    hidden, codes = frames
    forced = fine(hidden, codes)
    assert forced.shape == (2, 5, 7, VOCABULARY)
    for row in range(2):
        for frame in range(5):
            total = fine.start(hidden[row : row + 1, frame])
            for book in range(1, 8):
                total = fine.add(total, book - 1, codes[row : row + 1, frame, book - 1])
                got = fine.logits(total, book)
                torch.testing.assert_close(got[0], forced[row, frame, book - 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("book", range(8))
def test_each_codebook_sees_those_before_it_only(fine: DepthDecoder, frames: tuple[Tensor, Tensor], book: int) -> None:
    hidden, codes = frames
    changed = codes.clone()
    changed[..., book] = (codes[..., book] + 1) % VOCABULARY
    moved = (fine(hidden, codes) != fine(hidden, changed)).any(-1).all(0).all(0)  # (7,), of codebooks 1 to 7
    assert moved.tolist() == [later > book for later in range(1, 8)]


def test_hidden_state_is_used(fine: DepthDecoder, frames: tuple[Tensor, Tensor]) -> None:
    hidden, codes = frames
    assert (fine(hidden, codes) - fine(hidden + 0.5, codes)).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("count", [2, 4])
def test_fewer_codebooks_are_the_first_ones(fine: DepthDecoder, frames: tuple[Tensor, Tensor], count: int) -> None:
    hidden, codes = frames
    torch.testing.assert_close(fine(hidden, codes[..., :count]), fine(hidden, codes)[..., : count - 1, :])


def test_every_parameter_learns(fine: DepthDecoder, frames: tuple[Tensor, Tensor]) -> None:
    hidden, codes = frames
    fine.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(fine(hidden, codes).flatten(0, 2), codes[..., 1:].flatten())
    gradients = torch.autograd.grad(loss, list(fine.parameters()))
    fine.requires_grad_(False)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
