"""The `frame` decoder: 75 Hz throughout, and a head that yields the 320 samples of a frame.

In the manner of Vocos (arXiv 2306.00814) and WaveNeXt, but without an overlap between frames.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.interface import Decoder
from model.constants import HOP_SAMPLES, LATENT_DIM


class CausalConv(nn.Conv1d):
    """A convolution over frames that sees the present and the past only; zeros stand before the clip."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T)"""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))

    def stream(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same over a chunk, which may be one frame: that is a product, not a convolution.

        ``before``: the last kernel - 1 inputs of the chunk before (B, C, kernel - 1), or None. Returns this one's, too.
        """
        left = self.kernel_size[0] - 1
        x = F.pad(x, (left, 0)) if before is None else torch.cat([before, x], dim=-1)
        after = x[..., 1:] if x.shape[-1] == left + 1 else x[..., x.shape[-1] - left :].clone()  # no view of all of it
        if x.shape[-1] > left + 1:
            return F.conv1d(x, self.weight, self.bias, groups=self.groups), after
        if self.groups > 1:  # depthwise
            out = (x * self.weight[:, 0]).sum(-1)
            out = out if self.bias is None else out + self.bias
        else:
            out = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)
        return out[..., None], after


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

    def stream(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same over a chunk; ``before`` as in `CausalConv.stream`."""
        mixed, after = self.depthwise.stream(x, before)
        return x + self.mix(mixed.transpose(1, 2)).transpose(1, 2), after


def stream_blocks(
    blocks: nn.ModuleList, x: Tensor, before: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """ConvNeXt blocks over a chunk: (B, dim, n) -> (B, dim, n), and what each of them leaves."""
    after = []
    for block, state in zip(blocks, before or [None] * len(blocks), strict=True):
        assert isinstance(block, ConvNeXtBlock)
        x, left = block.stream(x, state)
        after.append(left)
    return x, tuple(after)


class TrunkState(NamedTuple):
    """What the convolutions of a `FrameTrunk` saw last."""

    entry: Tensor  # (B, 128, kernel - 1)
    blocks: tuple[Tensor, ...]  # (B, dim, kernel - 1) each


class FrameTrunk(nn.Module):
    """Latents to features at 75 Hz: a convolution, and blocks."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.entry = CausalConv(LATENT_DIM, dim, kernel)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, expansion, kernel, blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    @property
    def receptive_field(self) -> int:
        """Frames before the present one that it sees."""
        convolutions = [self.entry, *(block.depthwise for block in self.blocks)]
        return sum(conv.kernel_size[0] - 1 for conv in convolutions)  # type: ignore[union-attr, index, misc]

    def features(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, T, dim)"""
        x = self.entry(latents)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x.transpose(1, 2))
        return normed

    def stream_features(self, latents: Tensor, state: TrunkState | None) -> tuple[Tensor, TrunkState]:
        """`features` of a chunk: (B, 128, n) -> (B, n, dim), and the state after it"""
        x, entry = self.entry.stream(latents, state and state.entry)
        x, blocks = stream_blocks(self.blocks, x, state and state.blocks)
        normed: Tensor = self.norm(x.transpose(1, 2))
        return normed, TrunkState(entry, blocks)


class FrameDecoder(FrameTrunk, Decoder):
    """Latents at 75 Hz to samples, a whole frame at a time: no upsampling layers, so it is cheap to step."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__(dim, blocks, expansion, kernel)
        self.head = nn.Linear(dim, HOP_SAMPLES)
        self.gain = nn.Linear(dim, 1)  # log of the frame's level: a linear head alone must cancel to be quiet

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        return cls(config.frame_dim, config.frame_blocks, config.frame_expansion, config.frame_kernel)

    @property
    def output_layer(self) -> nn.Linear:
        return self.head

    def frames_from(self, features: Tensor) -> Tensor:
        """The head, shape times gain: (B, T, dim) -> (B, T, 320)"""
        frames: Tensor = self.head(features) * torch.exp(self.gain(features).clamp(-12.0, 2.0))
        return frames

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, 1, 320 T)"""
        return self.frames_from(self.features(latents)).flatten(1)[:, None]

    def stream(self, latents: Tensor, state: TrunkState | None) -> tuple[Tensor, TrunkState]:
        features, after = self.stream_features(latents, state)
        return self.frames_from(features).flatten(1)[:, None], after
