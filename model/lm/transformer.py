"""A causal transformer with a sliding window, and its ring cache.

Every layer attends to the last ``window`` positions, itself included, in training and in serving alike. The cache is a
ring of that many positions, so it is exact for any length, and its size never grows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.lm.kv_cache import Cache, KVCache, SlotCache, round_to_cache_dtype
from model.lm.rotary import rotary, rotate


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


def band_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: query i sees keys i - window + 1 to i."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


class Attention(nn.Module):
    """Multi-head attention over the window.

    ``round_cache``: keys and values are rounded as a cache holds them, whether there is one or not.
    """

    def __init__(self, dim: int, heads: int, round_cache: bool = True) -> None:
        super().__init__()
        self.heads, self.round_cache = heads, round_cache
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
        if self.round_cache:
            k, v = round_to_cache_dtype(k), round_to_cache_dtype(v)
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

    def __init__(self, dim: int, heads: int, round_cache: bool = True) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads, round_cache)
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
    """Blocks that share a window; ``round_cache`` as in `Attention`."""

    def __init__(self, dim: int, layers: int, heads: int, window: int, round_cache: bool = True) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.width = dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, round_cache) for _ in range(layers))
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "contract.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5)  # residual branches start small (GPT-2)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def set_round_cache(self, round_cache: bool) -> None:
        """Change ``round_cache`` of all blocks: a training steps without it, and evaluates with it."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.round_cache = round_cache

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
            past = 0 if cache is None else min(first, self.window - 1)
            mask = band_mask(past + count, self.window, x.device)[past:]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, cache, layer)
        if cache is not None:
            cache.advance(count)
        return x
