"""Shape of the codec."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from model.constants import MAX_CODEBOOKS

DecoderKind = Literal["frame", "harmonic", "seanet", "source_filter"]
EncoderKind = Literal["seanet", "spectral"]


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec. Meta's `encodec_24khz` is ``CodecConfig.meta()``; the project's own is the default."""

    decoder: DecoderKind = "frame"
    encoder: EncoderKind = "seanet"
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
    encoder_dim: int = 256  # of the spectral encoder
    encoder_blocks: int = 6
    encoder_expansion: int = 2
    encoder_kernel: int = 5

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
