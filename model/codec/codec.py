"""The codec: samples to codes and back.

EnCodec (arXiv 2210.13438) through the `encodec` package: its SEANet encoder and residual quantiser, with a decoder of
one of three kinds. ``seanet`` is the package's own (what Meta's checkpoint has). ``frame`` works at 75 Hz and yields
the 320 samples of a frame at once (`model.codec.decoders.frame`). ``harmonic`` is that and oscillators
(`model.codec.decoders.harmonic`).

This file holds the plain, whole-clip path, the one that training uses. `model.codec.streaming` runs the same weights
chunk by chunk.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.decoders.frame import FrameDecoder
from model.codec.decoders.harmonic import HarmonicDecoder, PitchEstimator
from model.codec.decoders.source_filter import SourceFilterDecoder
from model.codec.encodec_import import import_encodec
from model.codec.encoders.spectral import SpectralEncoder
from model.constants import ENCODEC_RATIOS, HOP_SAMPLES, LATENT_DIM, VOCABULARY


def _decoder(config: CodecConfig) -> FrameDecoder | HarmonicDecoder | SourceFilterDecoder:
    """A decoder at 75 Hz, of random weights."""
    shape = (config.frame_expansion, config.frame_kernel)
    if config.decoder == "source_filter":
        return SourceFilterDecoder(config.frame_dim, config.frame_blocks, *shape)
    frame = FrameDecoder(config.frame_dim, config.frame_blocks, *shape)
    if config.decoder == "frame":
        return frame
    return HarmonicDecoder(frame, PitchEstimator(config.pitch_dim, config.pitch_blocks, *shape))


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
        self.encoder: nn.Module = (
            SpectralEncoder(config.encoder_dim, config.encoder_blocks, config.encoder_expansion, config.encoder_kernel)
            if config.encoder == "spectral"
            else modules.SEANetEncoder(**seanet)
        )
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
