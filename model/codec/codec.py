"""The codec: samples to codes and back.

EnCodec (arXiv 2210.13438) through the `encodec` package: its SEANet encoder and residual quantiser, with a decoder of
one of three kinds. ``seanet`` is the package's own (what Meta's checkpoint has). ``frame`` works at 75 Hz and yields
the 320 samples of a frame at once (`model.codec.decoders.frame`). ``harmonic`` is that and oscillators
(`model.codec.decoders.harmonic`).

This file holds the plain, whole-clip path, the one that training uses. `model.codec.streaming` runs the same weights
chunk by chunk.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.codec.decoders.frame import FrameDecoder
from model.codec.decoders.harmonic import HarmonicDecoder, PitchReader
from model.codec.encodec_import import import_encodec
from model.constants import ENCODEC_RATIOS, HOP_SAMPLES, LATENT_DIM, MAX_CODEBOOKS, VOCABULARY

DecoderKind = Literal["frame", "harmonic", "seanet"]


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec. Meta's `encodec_24khz` is ``CodecConfig.meta()``; the project's own is the default."""

    decoder: DecoderKind = "frame"
    n_filters: int = 16  # Meta: 32
    lstm_layers: int = 2
    pad_mode: Literal["constant", "reflect"] = "constant"  # zeros: causal from the first sample on. Meta: reflect
    codebooks: int = MAX_CODEBOOKS
    frame_dim: int = 256
    frame_blocks: int = 8
    frame_expansion: int = 3
    frame_kernel: int = 7
    pitch_dim: int = 128  # of the network that reads the pitch; expansion and kernel are the frame decoder's
    pitch_blocks: int = 6

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


def _decoder(config: CodecConfig) -> FrameDecoder | HarmonicDecoder:
    """A decoder at 75 Hz, of random weights."""
    shape = (config.frame_expansion, config.frame_kernel)
    frame = FrameDecoder(config.frame_dim, config.frame_blocks, *shape)
    if config.decoder == "frame":
        return frame
    return HarmonicDecoder(frame, PitchReader(config.pitch_dim, config.pitch_blocks, *shape))


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
        self.decoder: nn.Module = modules.SEANetDecoder(**seanet) if config.decoder == "seanet" else _decoder(config)

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
