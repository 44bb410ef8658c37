"""The codec: samples to codes and back.

EnCodec (arXiv 2210.13438) through the `encodec` package: its SEANet encoder and residual quantiser, with a decoder of
one of two kinds. ``seanet`` is the package's own (what Meta's checkpoint has); ``frame`` works at 75 Hz and ends in a
head that yields the 320 samples of the frame, in the manner of Vocos (arXiv 2306.00814) and WaveNeXt.

This file holds the plain, whole-clip path, the one that training uses. `model.codec.streaming` runs the same weights
chunk by chunk.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.constants import ENCODEC_RATIOS, HOP_SAMPLES, LATENT_DIM, MAX_CODEBOOKS, VOCABULARY
from model.encodec_import import import_encodec


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec. Meta's `encodec_24khz` is ``CodecConfig.meta()``; the project's own is the default."""

    decoder: Literal["frame", "seanet"] = "frame"
    n_filters: int = 16  # Meta: 32
    lstm_layers: int = 2
    pad_mode: Literal["constant", "reflect"] = "constant"  # zeros: causal from the first sample on. Meta: reflect
    codebooks: int = MAX_CODEBOOKS
    frame_dim: int = 256
    frame_blocks: int = 8
    frame_expansion: int = 3
    frame_kernel: int = 7

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CodecConfig":
        """From the `codec` part of a bundle's config. Raises ValueError on an unknown key."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown codec settings: {', '.join(sorted(unknown))}")
        return cls(**values)

    @classmethod
    def meta(cls) -> "CodecConfig":
        """Meta's `encodec_24khz`, cut to the codebooks that the project uses."""
        return cls(decoder="seanet", n_filters=32, pad_mode="reflect")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


class FrameDecoder(nn.Module):
    """Latents at 75 Hz to samples, a whole frame at a time: no upsampling layers, so it is cheap to step."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        dim = config.frame_dim
        self.entry = CausalConv(LATENT_DIM, dim, config.frame_kernel)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, config.frame_expansion, config.frame_kernel, config.frame_blocks)
            for _ in range(config.frame_blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, HOP_SAMPLES)
        self.gain = nn.Linear(dim, 1)  # log of the frame's level: a linear head alone must cancel to be quiet

    def samples_from(self, x: Tensor) -> Tensor:
        """The head, shape times gain: (B, dim, T) -> (B, 1, 320 T)"""
        x = self.norm(x.transpose(1, 2))  # (B, T, dim)
        samples: Tensor = self.head(x) * torch.exp(self.gain(x).clamp(-12.0, 2.0))  # (B, T, 320)
        return samples.flatten(1)[:, None, :]

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, 1, 320 T)"""
        x = self.entry(latents)
        for block in self.blocks:
            x = block(x)
        return self.samples_from(x)


class Codec(nn.Module):
    """Encoder, residual quantiser and decoder. Submodule names are those of `encodec.EncodecModel`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        encodec = import_encodec()
        modules, quantization = encodec.modules, encodec.quantization
        seanet: dict[str, Any] = dict(
            channels=1, dimension=LATENT_DIM, n_filters=config.n_filters, ratios=list(ENCODEC_RATIOS),
            norm="none", causal=True, pad_mode=config.pad_mode, lstm=config.lstm_layers,
        )  # fmt: skip
        self.encoder = modules.SEANetEncoder(**seanet)
        self.quantizer = quantization.ResidualVectorQuantizer(
            dimension=LATENT_DIM, n_q=config.codebooks, bins=VOCABULARY, kmeans_init=False, threshold_ema_dead_code=0
        )
        self.decoder: nn.Module = FrameDecoder(config) if config.decoder == "frame" else modules.SEANetDecoder(**seanet)

    def codebooks(self) -> Tensor:
        """The codebooks, (K, 1024, 128)."""
        return torch.stack([layer.codebook for layer in self.quantizer.vq.layers])

    def quantize(self, latents: Tensor) -> Tensor:
        """Latents (B, 128, T) -> codes (B, K, T) int64: each codebook codes what the ones before it left over."""
        codes: Tensor = self.quantizer.vq.encode(latents)
        return codes.transpose(0, 1)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) of the first k codebooks -> latents (B, 128, T)."""
        latents: Tensor = self.quantizer.vq.decode(codes.transpose(0, 1))
        return latents

    def encode(self, samples: Tensor) -> Tensor:
        """Samples (B, N) -> codes (B, K, N // 320) int64; a trailing part of a frame is dropped."""
        whole = samples.shape[-1] // HOP_SAMPLES * HOP_SAMPLES
        return self.quantize(self.encoder(samples[:, None, :whole]))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) -> samples (B, 320 T). Fewer codebooks give a coarser sound."""
        samples: Tensor = self.decoder(self.dequantize(codes))
        return samples[:, 0]
