"""Small codecs whose latents and samples move as those of a trained one do."""

from functools import cache
from typing import Literal, Protocol

import pytest
import torch

from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.encoders.spectral import SpectralEncoder
from model.training.train_codec import initialise

Decoder = Literal["frame", "harmonic", "seanet", "source_filter"]
PadMode = Literal["constant", "reflect"]


class MakeCodec(Protocol):
    def __call__(self, decoder: Decoder, pad_mode: PadMode) -> Codec: ...


@pytest.fixture(scope="session")
def make_codec() -> MakeCodec:
    """Codecs by kind; each is made once, and nobody may change it. PyTorch's own init would give constant codes."""

    @cache
    def make(decoder: Decoder, pad_mode: PadMode) -> Codec:
        torch.manual_seed(0)
        codec = Codec(
            CodecConfig(
                decoder=decoder, pad_mode=pad_mode, n_filters=4, lstm_layers=2, frame_dim=16, frame_blocks=3,
                pitch_dim=16, pitch_blocks=2, encoder_dim=16, encoder_blocks=2,
                encoder="spectral" if decoder == "source_filter" else "seanet",
            )
        )  # fmt: skip
        initialise(codec, torch.randn(2, 320 * 30) * 0.1)
        with torch.no_grad():
            for index, layer in enumerate(codec.quantizer.vq.layers):
                layer._codebook.embed.normal_(std=0.9**index)
            for parameter in codec.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.05)  # biases count, too
            if isinstance(codec.encoder, SpectralEncoder):  # noise looks much the same in every frame
                latents = codec.encoder(torch.randn(2, 1, 320 * 30) * 0.1)
                deviation = latents.std((0, 2))
                codec.encoder.out.bias.copy_((codec.encoder.out.bias - latents.mean((0, 2))) / deviation)
                codec.encoder.out.weight /= deviation[:, None]
        return codec.eval().requires_grad_(False)

    return make
