"""The codec: samples to codes and back.

As EnCodec (arXiv 2210.13438): an encoder, the residual quantiser of the `encodec` package, and a decoder. Of both ends
there are several kinds, registered in `model.codec.config`.

This file holds the plain, whole-clip path, the one that training uses. `model.codec.streaming` runs the same weights
chunk by chunk.
"""

from pkgutil import resolve_name

import torch
from torch import Tensor, nn

from model.codec.config import DECODERS, ENCODERS, CodecConfig
from model.codec.encodec_import import import_encodec
from model.codec.interface import Decoder, Encoder
from model.constants import HOP_SAMPLES, LATENT_DIM, VOCABULARY


class Codec(nn.Module):
    """Encoder, residual quantiser and decoder. Submodule names are those of `encodec.EncodecModel`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder = resolve_name(ENCODERS[config.encoder]).from_config(config)
        self.quantizer = import_encodec().quantization.ResidualVectorQuantizer(
            dimension=LATENT_DIM, n_q=config.codebooks, bins=VOCABULARY, kmeans_init=False, threshold_ema_dead_code=0
        )
        self.decoder: Decoder = resolve_name(DECODERS[config.decoder]).from_config(config)

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
