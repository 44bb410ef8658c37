"""Ring caches of keys and values: exact for any length, of a size that never grows."""

import torch
from torch import Tensor

from model.lm.rotary import angles

CACHE_DTYPE = torch.float16


def round_to_cache_dtype(x: Tensor) -> Tensor:
    """Keys or values as caches hold them: rounded to `CACHE_DTYPE`, in the dtype that they came in.

    The ring is most of what a step of many rows reads, and float16 halves it
    (`model.inference.numba_backend.attention`). Whatever evaluates the model rounds, with or without a cache, so that
    scoring and generating see the same numbers; the steps of a training, in bfloat16 or float32, do not
    (`model.lm.transformer.Attention.round_cache`).
    """
    return x.to(CACHE_DTYPE).type_as(x)


class KVCache:
    """The last ``window`` positions of every layer, as `round_to_cache_dtype` rounds them.

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
        count = min(self.length, self.window - 1)
        first = (self.length - count) % self.window
        keys, values = self.keys[layer], self.values[layer]
        if first + count <= self.window:
            return keys[:, :, first : first + count], values[:, :, first : first + count]
        wrap = first + count - self.window
        return (
            torch.cat([keys[:, :, first:], keys[:, :, :wrap]], dim=2),
            torch.cat([values[:, :, first:], values[:, :, :wrap]], dim=2),
        )

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a chunk's keys and values (B, H, T, D); `advance` follows when all layers have done so."""
        count = keys.shape[2]
        last = min(count, self.window)
        slots = torch.arange(self.length + count - last, self.length + count, device=keys.device) % self.window
        self.keys[layer].index_copy_(2, slots, keys[:, :, -last:])
        self.values[layer].index_copy_(2, slots, values[:, :, -last:])

    def put_one(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position (B, H, 1, D) and return all that it attends to, in slot order.

        Attention does not care for the order of its keys (their position is in their rotation), so nothing is copied.
        """
        slot = self.length % self.window
        self.keys[layer, :, :, slot : slot + 1] = key
        self.values[layer, :, :, slot : slot + 1] = value
        valid = min(self.length + 1, self.window)
        return self.keys[layer, :, :, :valid], self.values[layer, :, :, :valid]

    def advance(self, count: int) -> None:
        self.length += count


class SlotCache:
    """A ring per row, each at a position of its own: rows come and go, and the shapes never change.

    Layout as in `KVCache`; ``lengths`` (B,) int64 on the model's device counts the positions that each row has seen.
    Rows attend to the first ``attended`` slots under a mask, so that a row's result does not depend on how long its
    neighbours are (a masked key adds exactly 0, whatever it holds: it is zeroed when a row joins, so it is never NaN).
    """

    def __init__(self, layers: int, rows: int, heads: int, window: int, width: int, like: Tensor) -> None:
        shape, device = (layers, rows, heads, window, width), like.device
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.window = window
        self.attended = window
        self._rows = torch.arange(rows, device=device)
        self._slots = torch.arange(window, device=device)

    def join(self, row: int, cache: KVCache) -> None:
        """The row goes on from a cache of one row, which stays as it is."""
        valid = min(cache.length, self.window)
        self.keys[:, row].zero_()
        self.values[:, row].zero_()
        self.keys[:, row, :, :valid] = cache.keys[:, 0, :, :valid]
        self.values[:, row, :, :valid] = cache.values[:, 0, :, :valid]
        self.lengths[row] = cache.length

    def left(self, row: int, length: int) -> KVCache:
        """A copy of what a row holds after ``length`` positions, as `join` takes it."""
        layers, _, heads, window, width = self.keys.shape
        copy = KVCache(layers, 1, heads, window, width, self.keys)
        copy.keys.copy_(self.keys[:, row : row + 1])
        copy.values.copy_(self.values[:, row : row + 1])
        copy.length = length
        return copy

    def rotation(self, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each row's next position, (B, 1, 1, width // 2) each."""
        cos, sin = angles(self.lengths, width)
        return cos[:, None, None], sin[:, None, None]

    def mask(self) -> Tensor:
        """(B, 1, 1, attended) bool: the slots that hold something once the next position is put."""
        return (self._slots[: self.attended] <= self.lengths[:, None])[:, None, None]

    def put_one(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position a row (B, H, 1, D) and return the first ``attended`` slots."""
        slot = self.lengths % self.window
        self.keys[layer][self._rows, :, slot] = key[:, :, 0]
        self.values[layer][self._rows, :, slot] = value[:, :, 0]
        return self.keys[layer, :, :, : self.attended], self.values[layer, :, :, : self.attended]

    def advance(self, active: Tensor) -> None:
        """Active rows (B,) bool have seen one position more; what the others were given will be written over."""
        self.lengths += active


Cache = KVCache | SlotCache
