"""Rotary position embedding (arXiv 2104.09864)."""

import torch
from torch import Tensor

ROPE_BASE = 10_000.0


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
