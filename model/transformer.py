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
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
    positions = torch.arange(first, first + count, device=device, dtype=torch.float64)
    angles = positions[:, None] * ROPE_BASE**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the halves of each head by its position's angle: x (B, H, T, D), cos and sin (T, D // 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


def band_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: query i sees keys i - window + 1 to i."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


class KVCache:
    """The last ``window`` positions of every layer.

    Layout: ``keys`` and ``values`` are (layers, B, H, window, D); position p lies in slot p % window. ``length`` is the
    number of positions seen so far, the same for all rows. Slots that hold nothing yet are never read.
    """

    def __init__(self, layers: int, rows: int, heads: int, window: int, width: int, device: torch.device) -> None:
        shape = (layers, rows, heads, window, width)
        self.keys = torch.empty(shape, device=device)
        self.values = torch.empty(shape, device=device)
        self.window = window
        self.length = 0

    def repeated(self, rows: int) -> "KVCache":
        """A copy of a cache of one row, for ``rows`` rows that go on from the same prompt."""
        layers, _, heads, window, width = self.keys.shape
        copy = KVCache(layers, rows, heads, window, width, self.keys.device)
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


class Attention(nn.Module):
    """Multi-head attention over the window."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """(B, T, dim) -> (B, T, dim). ``mask`` (T, keys) bool; None: causal without a cache, all keys with one."""
        rows, count, dim = x.shape
        qkv = self.qkv(x).view(rows, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None and count == 1:
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
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
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
        device = next(self.parameters()).device
        return KVCache(len(self.blocks), rows, self.heads, self.window, self.width, device)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, dim) -> (B, T, dim); with a cache, x continues what the cache has seen."""
        count = x.shape[1]
        first = 0 if cache is None else cache.length
        cos, sin = rotary(first, count, self.width, x.device)
        mask: Tensor | None = None
        if count > self.window if cache is None else count > 1:  # a plain causal kernel skips half of the work
            kept = 0 if cache is None else min(first, self.window - 1)
            mask = band_mask(kept + count, self.window, x.device)[kept:]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, cache, layer)
        if cache is not None:
            cache.advance(count)
        return x
