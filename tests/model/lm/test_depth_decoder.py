"""The depth decoder: step by step = teacher-forced, and blind to the codes that it has yet to draw."""

import pytest
import torch
from torch import Tensor

from model.constants import LATENT_DIM, VOCABULARY
from model.lm.config import DecoderConfig
from model.lm.depth_decoder import NO_CODE, DepthDecoder, frames_before

Frames = tuple[Tensor, Tensor, Tensor]
CONFIG = DecoderConfig(dim=32, heads=2, mel=False, fine_dim=16, fine_recall=True)


@pytest.fixture(scope="module")
def fine() -> DepthDecoder:
    torch.manual_seed(0)
    fine = DepthDecoder(CONFIG).requires_grad_(False)
    for parameter in fine.parameters():
        if parameter.dim() == 2:
            parameter.mul_(10)
    fine.begin_with(torch.randn(8, VOCABULARY, LATENT_DIM))
    return fine


@pytest.fixture(scope="module")
def frames() -> Frames:
    """hidden (2, 5, 32), codes (2, 5, 8) and those before them"""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, VOCABULARY, (2, 5, 8), generator=generator)
    return torch.randn(2, 5, 32, generator=generator), codes, frames_before(codes)


def test_steps_equal_teacher_forcing(fine: DepthDecoder, frames: Frames) -> None:
    hidden, codes, before = frames
    forced = fine(hidden, codes, before)
    assert forced.shape == (2, 5, 7, VOCABULARY)
    for row in range(2):
        last = torch.full((1, 8), NO_CODE)
        for frame in range(5):
            total = fine.start(hidden[row : row + 1, frame], last)
            for book in range(1, 8):
                total = fine.add(total, book - 1, codes[row : row + 1, frame, book - 1])
                got = fine.logits(total, book)
                torch.testing.assert_close(got[0], forced[row, frame, book - 1], rtol=0, atol=1e-4)
            last = codes[row : row + 1, frame]


@pytest.mark.parametrize("book", range(8))
def test_each_codebook_sees_those_before_it_only(fine: DepthDecoder, frames: Frames, book: int) -> None:
    hidden, codes, before = frames
    changed = codes.clone()
    changed[..., book] = (codes[..., book] + 1) % VOCABULARY
    moved = fine(hidden, codes, before) != fine(hidden, changed, before)
    assert moved.any(-1).all(0).all(0).tolist() == [later > book for later in range(1, 8)]


@pytest.mark.parametrize("book", range(8))
def test_all_codes_of_the_frame_before_are_heard(fine: DepthDecoder, frames: Frames, book: int) -> None:
    hidden, codes, before = frames
    changed = before.clone()
    changed[:, 1:, book] = (before[:, 1:, book] + 1) % VOCABULARY
    moved = (fine(hidden, codes, before) != fine(hidden, codes, changed)).any(-1).all(-1)  # (2, 5)
    assert moved.tolist() == [[False, True, True, True, True]] * 2


def test_unknown_codes_add_nothing(fine: DepthDecoder, frames: Frames) -> None:
    """A clip's first frame, and codebooks that are not in use."""
    hidden, codes, before = frames
    none = torch.full_like(before, NO_CODE)
    torch.testing.assert_close(fine(hidden, codes, none), fine(hidden, codes, none[..., :0]))
    two = torch.cat([before[..., :2], none[..., 2:]], dim=-1)
    torch.testing.assert_close(fine(hidden, codes, two), fine(hidden, codes, before[..., :2]))


def test_previous_frame_begins_as_the_latents_of_the_codec() -> None:
    """Frames with near latents begin near, whatever their codes."""
    fine = DepthDecoder(CONFIG)
    vectors = torch.randn(8, VOCABULARY, LATENT_DIM)
    vectors[:, 1] = vectors[:, 0] + 0.1 * torch.randn(8, LATENT_DIM)
    fine.begin_with(vectors)
    codes = torch.tensor([[0] * 8, [1] * 8, [2] * 8])
    first, near, far = fine.start(torch.zeros(3, 32), codes).detach()
    assert 0.3 < float(first.std()) < 3
    assert (first - near).norm() < 0.3 * (first - far).norm()


def test_without_previous_frame_embeddings_the_frame_before_does_not_matter(frames: Frames) -> None:
    hidden, codes, before = frames
    fine = DepthDecoder(DecoderConfig(dim=32, heads=2, mel=False, fine_dim=16))
    fine.begin_with(torch.randn(8, VOCABULARY, LATENT_DIM))
    assert torch.equal(fine(hidden, codes, before), fine(hidden, codes, torch.full_like(before, NO_CODE)))


def test_hidden_state_is_used(fine: DepthDecoder, frames: Frames) -> None:
    hidden, codes, before = frames
    assert (fine(hidden, codes, before) - fine(hidden + 0.5, codes, before)).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("count", [2, 4])
def test_fewer_codebooks_are_the_first_ones(fine: DepthDecoder, frames: Frames, count: int) -> None:
    hidden, codes, before = frames
    whole = fine(hidden, codes, before)
    torch.testing.assert_close(fine(hidden, codes[..., :count], before), whole[..., : count - 1, :])


def test_every_parameter_learns(fine: DepthDecoder, frames: Frames) -> None:
    hidden, codes, before = frames
    fine.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(fine(hidden, codes, before).flatten(0, 2), codes[..., 1:].flatten())
    gradients = dict(
        zip(dict(fine.named_parameters()), torch.autograd.grad(loss, list(fine.parameters())), strict=True)
    )
    fine.requires_grad_(False)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert gradients["recall"][:, NO_CODE].abs().sum() == 0  # "none" stays zero
