"""What a training leaves, compared."""

from typing import Any

import torch
from torch import Tensor


def same(one: Any, other: Any) -> bool:
    """Equal to the bit: tensors within dicts, lists and tuples, and whatever else lies beside them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)
