"""A causal transformer with a sliding window, and its ring cache.

Every layer attends to the last ``window`` positions, itself included, in training and in serving alike. The cache is a
ring of that many positions, so it is exact for any length, and its size never grows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_BASE = 10_000.0


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


def rotary(first: int, count: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (arXiv 2104.09864), (count, width // 2) float32 each.

    Angles are computed in float64: after an hour at 75 Hz a float32 angle would be off by a hundredth of a radian.
    """
    return angles(torch.arange(first, first + count, device=device), width)


def angles(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (T,) int64: (T, width // 2) float32 each."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    turned = positions.double()[:, None] * ROPE_BASE**-exponents
    return turned.cos().float(), turned.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the halves of each head by its position's angle: x (B, H, T, D), cos and sin (T, D // 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


def kept(x: Tensor) -> Tensor:
    """Keys or values as caches keep them: rounded to float16, in the dtype that they came in.

    The ring is most of what a step of many rows reads, and float16 halves it
    (`model.inference.numba_backend.attention`). Whatever evaluates the model rounds, with or without a cache, so that
    scoring and generating see the same numbers; training, in bfloat16 or float32, does not.
    """
    return x.half().type_as(x)


def band_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: query i sees keys i - window + 1 to i."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


class KVCache:
    """The last ``window`` positions of every layer, as `kept` rounds them.

    Layout: ``keys`` and ``values`` are (layers, B, H, window, D); position p lies in slot p % window. ``length`` is the
    number of positions seen so far, the same for all rows. Slots that hold nothing yet are never read.
    """

    def __init__(self, layers: int, rows: int, heads: int, window: int, width: int, like: Tensor) -> None:
        shape = (layers, rows, heads, window, width)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.window = window
        self.length = 0

    def repeated(self, rows: int) -> "KVCache":
        """A copy of a cache of one row, for ``rows`` rows that go on from the same prompt."""
        layers, _, heads, window, width = self.keys.shape
        copy = KVCache(layers, rows, heads, window, width, self.keys)
        copy.keys.copy_(self.keys.expand_as(copy.keys))
        copy.values.copy_(self.values.expand_as(copy.values))
        copy.length = self.length
        return copy

    def past(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions before the current ones, oldest first, at most window - 1 of them."""
        kept = min(self.length, self.window - 1)
        first = (self.length - kept) % self.window
        keys, values = self.keys[layer], self.values[layer]
        if first + kept <= self.window:
            return keys[:, :, first : first + kept], values[:, :, first : first + kept]
        wrap = first + kept - self.window
        return (
            torch.cat([keys[:, :, first:], keys[:, :, :wrap]], dim=2),
            torch.cat([values[:, :, first:], values[:, :, :wrap]], dim=2),
        )

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a chunk's keys and values (B, H, T, D); `advance` follows when all layers have done so."""
        count = keys.shape[2]
        kept = min(count, self.window)
        slots = torch.arange(self.length + count - kept, self.length + count, device=keys.device) % self.window
        self.keys[layer].index_copy_(2, slots, keys[:, :, -kept:])
        self.values[layer].index_copy_(2, slots, values[:, :, -kept:])

    def put_one(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position (B, H, 1, D) and return all that it attends to, in slot order.

        Attention does not care for the order of its keys (their position is in their rotation), so nothing is copied.
        """
        slot = self.length % self.window
        self.keys[layer, :, :, slot : slot + 1] = key
        self.values[layer, :, :, slot : slot + 1] = value
        held = min(self.length + 1, self.window)
        return self.keys[layer, :, :, :held], self.values[layer, :, :, :held]

    def advance(self, count: int) -> None:
        self.length += count


class SlotCache:
    """A ring per row, each at a position of its own: rows come and go, and the shapes never change.

    Layout as in `KVCache`; ``lengths`` (B,) int64 on the model's device counts the positions that each row has seen.
    Rows attend to ``reach`` slots under a mask, so that a row's result does not depend on how long its neighbours are
    (a masked key adds exactly 0, whatever it holds: it is zeroed when a row joins, so that it is never NaN).
    """

    def __init__(self, layers: int, rows: int, heads: int, window: int, width: int, like: Tensor) -> None:
        shape, device = (layers, rows, heads, window, width), like.device
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.window = window
        self.reach = window
        self._rows = torch.arange(rows, device=device)
        self._slots = torch.arange(window, device=device)

    def join(self, row: int, cache: KVCache) -> None:
        """The row goes on from a cache of one row, which stays as it is."""
        held = min(cache.length, self.window)
        self.keys[:, row].zero_()
        self.values[:, row].zero_()
        self.keys[:, row, :, :held] = cache.keys[:, 0, :, :held]
        self.values[:, row, :, :held] = cache.values[:, 0, :, :held]
        self.lengths[row] = cache.length

    def rotation(self, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each row's next position, (B, 1, 1, width // 2) each."""
        cos, sin = angles(self.lengths, width)
        return cos[:, None, None], sin[:, None, None]

    def mask(self) -> Tensor:
        """(B, 1, 1, reach) bool: the slots that hold something once the next position is put."""
        return (self._slots[: self.reach] <= self.lengths[:, None])[:, None, None]

    def put_one(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position a row (B, H, 1, D) and return the first ``reach`` slots."""
        slot = self.lengths % self.window
        self.keys[layer][self._rows, :, slot] = key[:, :, 0]
        self.values[layer][self._rows, :, slot] = value[:, :, 0]
        return self.keys[layer, :, :, : self.reach], self.values[layer, :, :, : self.reach]

    def advance(self, active: Tensor) -> None:
        """Active rows (B,) bool have seen one position more; what the others were given will be written over."""
        self.lengths += active


Cache = KVCache | SlotCache


class Attention(nn.Module):
    """Multi-head attention over the window."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """(B, T, dim) -> (B, T, dim). ``mask`` (T, keys) bool; None: causal without a cache, all keys with one."""
        rows, count, dim = x.shape
        qkv = self.qkv(x).view(rows, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if not self.training:
            k, v = kept(k), kept(v)
        if isinstance(cache, SlotCache) or (cache is not None and count == 1):
            k, v = cache.put_one(layer, k, v)
        elif cache is not None:
            past_k, past_v = cache.past(layer)
            joined_k, joined_v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
            cache.put(layer, k, v)
            k, v = joined_k, joined_v
        causal = cache is None and mask is None
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, count, dim))
        return out


class Block(nn.Module):
    """Attention and a GELU feed-forward of four times the width, each behind a norm, each added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads)
        self.feed_norm = RMSNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim, bias=False)
        self.contract = nn.Linear(4 * dim, dim, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """(B, T, dim) -> (B, T, dim)"""
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache, layer)
        x = x + self.contract(F.gelu(self.expand(self.feed_norm(x))))
        return x


class Stack(nn.Module):
    """Blocks that share a window."""

    def __init__(self, dim: int, layers: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.width = dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "contract.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5)  # residual branches start small (GPT-2)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for ``rows`` sequences."""
        return KVCache(len(self.blocks), rows, self.heads, self.window, self.width, next(self.parameters()))

    def new_slots(self, rows: int) -> SlotCache:
        """A ring for each of ``rows`` slots."""
        return SlotCache(len(self.blocks), rows, self.heads, self.window, self.width, next(self.parameters()))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, dim) -> (B, T, dim); with a cache, x continues what the cache has seen.

        With a `SlotCache`, T is 1, and the caller advances it.
        """
        if isinstance(cache, SlotCache):
            assert x.shape[1] == 1, "slots step by one position"
            cos, sin = cache.rotation(self.width)
            mask: Tensor | None = cache.mask()
            for layer, block in enumerate(self.blocks):
                x = block(x, cos, sin, mask, cache, layer)
            return x
        count = x.shape[1]
        first = 0 if cache is None else cache.length
        cos, sin = rotary(first, count, self.width, x.device)
        mask = None
        if count > self.window if cache is None else count > 1:  # a plain causal kernel skips half of the work
            kept = 0 if cache is None else min(first, self.window - 1)
            mask = band_mask(kept + count, self.window, x.device)[kept:]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, cache, layer)
        if cache is not None:
            cache.advance(count)
        return x
