"""The `frame` decoder: 75 Hz throughout, and a head that yields the 320 samples of a frame.

In the manner of Vocos (arXiv 2306.00814) and WaveNeXt, but without an overlap between frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.constants import HOP_SAMPLES, LATENT_DIM


class CausalConv(nn.Conv1d):
    """A convolution over frames that sees the present and the past only; zeros stand before the clip."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T)"""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class ConvNeXtBlock(nn.Module):
    """Depthwise causal convolution, then a pointwise MLP, with a scaled residual (ConvNeXt, arXiv 2201.03545)."""

    def __init__(self, dim: int, expansion: int, kernel: int, blocks: int) -> None:
        super().__init__()
        self.depthwise = CausalConv(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, expansion * dim)
        self.contract = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 1.0 / blocks))

    def mix(self, x: Tensor) -> Tensor:
        """The part that works on each frame by itself: (B, T, dim) -> (B, T, dim)"""
        mixed: Tensor = self.scale * self.contract(F.gelu(self.expand(self.norm(x))))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, T) -> (B, dim, T)"""
        return x + self.mix(self.depthwise(x).transpose(1, 2)).transpose(1, 2)


class FrameTrunk(nn.Module):
    """Latents to features at 75 Hz: a convolution, and blocks."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.entry = CausalConv(LATENT_DIM, dim, kernel)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, expansion, kernel, blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    @property
    def memory(self) -> int:
        """Frames before the present one that it hears."""
        convolutions = [self.entry, *(block.depthwise for block in self.blocks)]
        return sum(conv.kernel_size[0] - 1 for conv in convolutions)  # type: ignore[union-attr, index, misc]

    def features(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, T, dim)"""
        x = self.entry(latents)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x.transpose(1, 2))
        return normed


class FrameDecoder(FrameTrunk):
    """Latents at 75 Hz to samples, a whole frame at a time: no upsampling layers, so it is cheap to step."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__(dim, blocks, expansion, kernel)
        self.head = nn.Linear(dim, HOP_SAMPLES)
        self.gain = nn.Linear(dim, 1)  # log of the frame's level: a linear head alone must cancel to be quiet

    def frames_from(self, features: Tensor) -> Tensor:
        """The head, shape times gain: (B, T, dim) -> (B, T, 320)"""
        frames: Tensor = self.head(features) * torch.exp(self.gain(features).clamp(-12.0, 2.0))
        return frames

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, 1, 320 T)"""
        return self.frames_from(self.features(latents)).flatten(1)[:, None]
