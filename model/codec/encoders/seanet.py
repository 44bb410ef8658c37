"""The `seanet` encoder: EnCodec's own, of strided convolutions and an LSTM; what Meta's checkpoint has."""

from typing import Self

from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.encodec_import import import_encodec
from model.codec.interface import Encoder
from model.codec.seanet import SEANetState, settings, stream


class SEANetEncoder(Encoder):
    """The package's modules, under the names that they have in its checkpoints.

    The decoder reads much the same: what they share is in `model.codec.seanet`, and each says its own shapes.
    """

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        return cls(import_encodec().modules.SEANetEncoder(**settings(config)).model)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, 1, 320 T) -> (B, 128, T)"""
        latents: Tensor = self.model(samples)
        return latents

    def stream(self, samples: Tensor, state: SEANetState | None) -> tuple[Tensor, SEANetState]:
        return stream(self.model, samples, state)
