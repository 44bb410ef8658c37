"""The sliding window and its ring cache: cached = uncached, in any chunks, for ever, and with NaN in unused slots."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.lm.kv_cache import KVCache, round_to_cache_dtype
from model.lm.rotary import rotary, rotate
from model.lm.transformer import Block, RMSNorm, Stack, band_mask

DIM, LAYERS, HEADS, WINDOW = 16, 2, 2, 10
# In double precision: what two orders of summation differ by moves no key or value across a float16's rounding, so the
# laws hold as sharply as if nothing were rounded. In float32 one does now and then, and shows as some 1e-5.
TOLERANCE: dict[str, Any] = dict(rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def stack() -> Stack:
    torch.manual_seed(0)
    stack = Stack(DIM, LAYERS, HEADS, WINDOW).eval().requires_grad_(False).double()
    for parameter in stack.parameters():
        if parameter.dim() == 2:
            parameter.mul_(10)  # so that attention is far from even, and a wrong key shows
    return stack


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(2, 47, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def poison(cache: KVCache) -> None:
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)


def run_chunks(stack: Stack, x: Tensor, sizes: list[int]) -> Tensor:
    cache = stack.new_cache(len(x))
    poison(cache)
    return torch.cat([stack(chunk, cache) for chunk in x.split(sizes, dim=1)], dim=1)


def plain_stack(stack: Stack, x: Tensor) -> Tensor:
    """The same network written out: softmax by hand, complex rotation, position by position."""
    rows, count, dim = x.shape
    width = dim // HEADS
    for block in stack.blocks:
        assert isinstance(block, Block)
        qkv = F.rms_norm(x, (dim,), block.attention_norm.weight, 1e-6) @ block.attention.qkv.weight.T
        q, k, v = (part.view(rows, count, HEADS, width) for part in qkv.chunk(3, -1))
        angles = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2).double() / width)
        turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

        def turned(y: Tensor, turn: Tensor = turn) -> Tensor:
            pairs = torch.complex(*y.chunk(2, -1)) * turn
            return torch.cat([pairs.real, pairs.imag], -1)

        q, k, v = turned(q), turned(k).half().double(), v.half().double()
        mixed = torch.zeros_like(q)
        for t in range(count):
            seen = slice(max(0, t - WINDOW + 1), t + 1)
            weights = (torch.einsum("bhd,bshd->bhs", q[:, t], k[:, seen]) / width**0.5).softmax(-1)
            mixed[:, t] = torch.einsum("bhs,bshd->bhd", weights, v[:, seen])
        x = x + mixed.flatten(2) @ block.attention.out.weight.T
        feed = F.rms_norm(x, (dim,), block.feed_norm.weight, 1e-6)
        x = x + F.gelu(feed @ block.expand.weight.T) @ block.contract.weight.T
    return x


@pytest.mark.parametrize("count", [1, 6, WINDOW, WINDOW + 1, 47])
def test_full_forward_is_what_it_says(stack: Stack, inputs: Tensor, count: int) -> None:
    x = inputs[:, :count]
    torch.testing.assert_close(stack(x), plain_stack(stack, x), rtol=0, atol=1e-5)  # angles are float32


@pytest.mark.parametrize(
    "sizes",
    [[1] * 47, [47], [9, 38], [10, 1, 36], [3] * 15 + [2], [20, 1, 1, 25], [1, 46], [11, 11, 11, 14]],
    ids=lambda sizes: f"{len(sizes)} chunks from {sizes[0]}",
)
def test_cached_equals_uncached(stack: Stack, inputs: Tensor, sizes: list[int]) -> None:
    """47 positions are more than four windows: the ring has gone round."""
    got = run_chunks(stack, inputs, sizes)
    assert not got.isnan().any()
    torch.testing.assert_close(got, stack(inputs), **TOLERANCE)


def test_window_is_exact(stack: Stack, inputs: Tensor) -> None:
    """Two layers of a window of 10 reach back 18 positions and no further."""
    changed = inputs.clone()
    changed[:, 20] += 1.0
    moved = (stack(inputs) != stack(changed)).any(-1).any(0)
    assert not moved[:20].any()
    assert moved[20 : 20 + 19].all()
    assert not moved[20 + 19 :].any()


def test_causal_to_the_bit(stack: Stack, inputs: Tensor) -> None:
    for position in range(0, 47, 6):
        changed = inputs.clone()
        changed[:, position + 1 :] = 9.0
        assert torch.equal(stack(inputs)[:, : position + 1], stack(changed)[:, : position + 1])


def test_cache_never_grows(stack: Stack, inputs: Tensor) -> None:
    cache = stack.new_cache(2)
    before = (cache.keys.shape, cache.keys.data_ptr())
    for _ in range(3):
        stack(inputs, cache)
    assert (cache.keys.shape, cache.keys.data_ptr()) == before == ((LAYERS, 2, HEADS, WINDOW, DIM // HEADS), before[1])
    assert cache.length == 3 * 47


def test_repeated_cache_goes_on_alike_and_apart(stack: Stack, inputs: Tensor) -> None:
    one = stack.new_cache(1)
    stack(inputs[:1, :23], one)
    many = one.repeated(3)
    different = torch.randn(3, 5, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = stack(different, many)
    for row in range(3):
        whole = stack(torch.cat([inputs[:1, :23], different[row : row + 1]], 1))[:, 23:]
        torch.testing.assert_close(got[row : row + 1], whole, **TOLERANCE)
    after = stack(inputs[:1, 23:], one)  # the rows' positions did not get into the prompt's own cache
    torch.testing.assert_close(after, stack(inputs[:1])[:, 23:], **TOLERANCE)


def test_rotation_is_relative_and_exact_after_hours() -> None:
    """Products of rotated vectors depend on their distance alone; 10 h at 75 Hz are 2.7 million positions."""
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0)).double()

    def product(first: int) -> Tensor:
        a, b = rotary(first, 1, 32, q.device), rotary(first + 7, 1, 32, q.device)
        return (rotate(q, *a) * rotate(k, *b)).sum()

    torch.testing.assert_close(product(2_700_000), product(0), rtol=0, atol=1e-5)


def test_caches_hold_what_float16_can(stack: Stack, inputs: Tensor) -> None:
    """So that a ring of float16 is exact, and a cache changes nothing that is not changed without one."""
    cache = stack.new_cache(2)
    stack(inputs, cache)
    for held in (cache.keys, cache.values):
        assert torch.equal(held, held.half().double()) and held.unique().numel() > 100
    assert round_to_cache_dtype(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rounding_is_a_field_and_no_mode(stack: Stack, inputs: Tensor) -> None:
    rounded = stack(inputs)
    assert torch.equal(stack.train()(inputs), rounded), "the mode of the module has no part in it"
    stack.eval().set_round_cache(False)
    assert not torch.equal(stack(inputs), rounded)
    stack.set_round_cache(True)
    made = Stack(DIM, LAYERS, HEADS, WINDOW, round_cache=False).eval().double()
    made.load_state_dict(stack.state_dict())
    cache = made.new_cache(2)
    made(inputs, cache)
    assert not torch.equal(cache.keys, cache.keys.half().double())


def test_rotary_keeps_the_type() -> None:
    cos, sin = rotary(5, 3, 8, torch.device("cpu"))
    assert cos.shape == sin.shape == (3, 4)
    assert rotate(torch.ones(1, 1, 3, 8, dtype=torch.bfloat16), cos, sin).dtype == torch.bfloat16


def test_band_mask() -> None:
    wanted = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert band_mask(4, 2, torch.device("cpu")).int().tolist() == wanted


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_rms_norm(scale: float) -> None:
    out = RMSNorm(64)(torch.randn(5, 64) * scale)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 25])
def test_put_keeps_the_last_window(chunk: int) -> None:
    cache = KVCache(1, 1, 1, WINDOW, 1, torch.empty(0))
    poison(cache)
    for first in range(0, 3 * chunk, chunk):
        positions = torch.arange(first, first + chunk, dtype=torch.float32).view(1, 1, -1, 1)
        cache.put(0, positions, -positions)
        cache.advance(chunk)
        keys, values = cache.past(0)
        wanted = list(range(first + chunk))[-(WINDOW - 1) :]
        assert keys.flatten().tolist() == wanted
        assert values.flatten().tolist() == [-position for position in wanted]
