"""Counter-based sampling: known answers, what top-k and top-p keep, and the distribution that is drawn from."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.inference.rng import philox, uniforms
from model.inference.sampling import MAX_SEED, SamplingOptions, draw, probabilities


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    """From the reference implementation's kat_vectors (Random123, philox4x32 10)."""
    words = philox(np.array([counter], dtype=np.uint64), key)[0]
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_uniforms_do_not_depend_on_the_range() -> None:
    whole = uniforms(7, 3, 0, 50, 8)
    assert whole.shape == (50, 8) and whole.dtype == np.float64
    np.testing.assert_array_equal(uniforms(7, 3, 20, 5, 8), whole[20:25])
    np.testing.assert_array_equal(uniforms(7, 3, 0, 50, 2), whole[:, :2])
    np.testing.assert_array_equal(np.concatenate([uniforms(7, 3, t, 1, 8) for t in range(50)]), whole)


def test_uniforms_differ_where_they_must() -> None:
    base = uniforms(0, 0, 0, 20, 8)
    assert len(np.unique(base)) == base.size
    for other in (uniforms(1, 0, 0, 20, 8), uniforms(2**32, 0, 0, 20, 8), uniforms(MAX_SEED, 0, 0, 20, 8),
                  uniforms(0, 1, 0, 20, 8)):  # fmt: skip
        assert not np.intersect1d(base, other).size


def test_uniforms_are_uniform() -> None:
    numbers = uniforms(5, 0, 0, 4000, 8).ravel()
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    counts = np.bincount((numbers * 64).astype(int), minlength=64)
    chi_square = ((counts - len(numbers) / 64) ** 2 / (len(numbers) / 64)).sum()
    assert 30 < chi_square < 110  # 63 degrees of freedom: outside of it once in 10 000


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 2


def test_probabilities_without_limits_are_softmax(logits: Tensor) -> None:
    torch.testing.assert_close(probabilities(logits, SamplingOptions()), logits.double().softmax(-1))


def test_temperature_divides_the_logits(logits: Tensor) -> None:
    got = probabilities(logits, SamplingOptions(temperature=0.5))
    torch.testing.assert_close(got, (2 * logits.double()).softmax(-1))


@pytest.mark.parametrize("k", [1, 3, 31])
def test_top_k(logits: Tensor, k: int) -> None:
    got = probabilities(logits, SamplingOptions(top_k=k))
    best = logits.argsort(-1, descending=True)
    assert (got > 0).sum(-1).tolist() == [k] * 4
    for row in range(4):
        wanted = logits[row, best[row, :k]].double().softmax(-1)
        torch.testing.assert_close(got[row, best[row, :k]], wanted)


def test_top_k_keeps_ties() -> None:
    got = probabilities(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), SamplingOptions(top_k=2))
    assert (got > 0).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("k", [0, 32, 1000])
def test_top_k_off(logits: Tensor, k: int) -> None:
    assert torch.equal(probabilities(logits, SamplingOptions(top_k=k)), probabilities(logits, SamplingOptions()))


def test_top_p_is_the_smallest_set_that_reaches_it() -> None:
    expected = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64)
    for p, kept in ((0.3, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        got = probabilities(expected.log(), SamplingOptions(top_p=p))[0]
        assert got.nonzero()[:, 0].tolist() == kept, p
        torch.testing.assert_close(got[kept], expected[0, kept] / expected[0, kept].sum())


def test_top_p_counts_after_top_k_and_temperature() -> None:
    """Two tokens of 0.4 and 0.2 left by top-k weigh 2/3 and 1/3, so top-p 0.6 keeps one; at 0.4 alone it would not."""
    expected = torch.tensor([[0.4, 0.2, 0.2001, 0.1999]], dtype=torch.float64)
    got = probabilities(expected.log(), SamplingOptions(top_k=2, top_p=0.6))[0]
    assert got.nonzero()[:, 0].tolist() == [0]
    hot = probabilities(expected.log(), SamplingOptions(temperature=2.0, top_k=2, top_p=0.6))[0]
    assert hot.nonzero()[:, 0].tolist() == [0, 2]  # 0.585 and 0.415


@pytest.mark.parametrize(
    "options",
    [SamplingOptions(), SamplingOptions(temperature=0.7, top_k=12), SamplingOptions(top_p=0.8)],
    ids=["plain", "top-k", "top-p"],
)
def test_draw_follows_the_distribution(logits: Tensor, options: SamplingOptions) -> None:
    count = 20_000
    uniform = torch.from_numpy(uniforms(11, 0, 0, count, 1)[:, 0])
    drawn = draw(logits[:1].expand(count, -1), options, uniform)
    expected = probabilities(logits[:1], options)[0]
    counts = torch.bincount(drawn, minlength=32).double()
    assert not counts[expected == 0].any()
    often = expected * count >= 5
    chi_square = float(((counts - expected * count) ** 2 / (expected * count))[often].sum())
    degrees = int(often.sum()) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_draw_at_the_ends() -> None:
    """Neither the first nor the last number may give a token of no chance."""
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    low, high = (draw(logits, SamplingOptions(), torch.tensor([u], dtype=torch.float64)) for u in (0.0, 1 - 2**-53))
    assert (low.item(), high.item()) == (1, 2)


def test_temperature_zero_is_argmax(logits: Tensor) -> None:
    for number in (0.0, 0.5, 0.999):
        uniform = torch.full((4,), number, dtype=torch.float64)
        assert torch.equal(draw(logits, SamplingOptions(temperature=0.0), uniform), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-300, 1e-310, 5e-324])
def test_temperature_next_to_zero_is_argmax(logits: Tensor, temperature: float) -> None:
    for options in (SamplingOptions(temperature), SamplingOptions(temperature, top_k=5, top_p=0.9)):
        uniform = torch.full((len(logits),), 0.9, dtype=torch.float64)
        assert torch.equal(draw(logits, options, uniform), logits.argmax(-1))


def test_a_row_does_not_depend_on_its_neighbours(logits: Tensor) -> None:
    options = SamplingOptions(temperature=0.9, top_k=20, top_p=0.9)
    uniform = torch.from_numpy(uniforms(1, 0, 0, 4, 1)[:, 0])
    together = draw(logits, options, uniform)
    alone = torch.cat([draw(logits[row : row + 1], options, uniform[row : row + 1]) for row in range(4)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": 2.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0},
     {"top_p": 1.1}, {"seed": -1}, {"seed": MAX_SEED + 1}],
    ids=str,
)  # fmt: skip
def test_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingOptions(**wrong)  # type: ignore[arg-type]


def levelled(logits: Tensor, levels: int = 4) -> Tensor:
    return torch.arange(logits.shape[-1]) % levels == torch.arange(levels)[:, None]


@pytest.mark.parametrize(
    "options",
    [SamplingOptions(0.5), SamplingOptions(2.0), SamplingOptions(top_p=0.7), SamplingOptions(0.8, top_p=0.9)],
    ids=["cold", "hot", "top-p", "both"],
)
def test_levels_keep_their_probability(logits: Tensor, options: SamplingOptions) -> None:
    of = levelled(logits)
    got, plain = probabilities(logits, options, of), logits.double().softmax(-1)
    torch.testing.assert_close(got @ of.double().t(), plain @ of.double().t())
    for level in of:  # and within a level, what is drawn is what the options make of its tokens alone
        within = got[:, level] / got[:, level].sum(-1, keepdim=True)
        torch.testing.assert_close(within, probabilities(logits[:, level], options))


def test_levels_after_top_k(logits: Tensor) -> None:
    """The k likeliest of all tokens; the levels that are left weigh against each other as before."""
    of, plain = levelled(logits), logits.double().softmax(-1)
    got = probabilities(logits, SamplingOptions(top_k=3), of)
    assert torch.equal(got > 0, probabilities(logits, SamplingOptions(top_k=3)) > 0)
    left = (got @ of.double().t()) > 0
    shares = (plain @ of.double().t()) * left
    torch.testing.assert_close(got @ of.double().t(), shares / shares.sum(-1, keepdim=True))
    assert torch.equal(draw(logits, SamplingOptions(top_k=1), torch.full((4,), 0.9), of), logits.argmax(-1))


def test_levels_change_nothing_unasked(logits: Tensor) -> None:
    of = levelled(logits)
    for options in (SamplingOptions(), SamplingOptions(0.5, 9, 0.9, keep_level=False)):
        assert torch.equal(probabilities(logits, options, of), probabilities(logits, options))
    uniform = torch.full((4,), 0.9, dtype=torch.float64)
    greedy = SamplingOptions(temperature=0.0)
    assert torch.equal(draw(logits, greedy, uniform, of), logits.argmax(-1))
