"""The `seanet` decoder: EnCodec's own, of transposed convolutions and an LSTM; what Meta's checkpoint has."""

from typing import Self

from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.encodec_import import import_encodec
from model.codec.interface import Decoder
from model.codec.seanet import SEANetState, settings, stream


class SEANetDecoder(Decoder):
    """The package's modules, under the names that they have in its checkpoints.

    The encoder reads much the same: what they share is in `model.codec.seanet`, and each says its own shapes.
    """

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        return cls(import_encodec().modules.SEANetDecoder(**settings(config)).model)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, 1, 320 T)"""
        samples: Tensor = self.model(latents)
        return samples

    def stream(self, latents: Tensor, state: SEANetState | None) -> tuple[Tensor, SEANetState]:
        return stream(self.model, latents, state)
