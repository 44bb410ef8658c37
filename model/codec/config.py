"""Shape of the codec, and which kinds of encoders and decoders there are."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from model.constants import MAX_CODEBOOKS

# Each kind's class, a `model.codec.interface.Encoder` or `Decoder`. By name: it is imported when a codec of that kind
# is made, so that a command line can offer the kinds without torch, and the classes can take their sizes from here.
ENCODERS = {
    "seanet": "model.codec.encoders.seanet:SEANetEncoder",
    "spectral": "model.codec.encoders.spectral:SpectralEncoder",
}
DECODERS = {
    "frame": "model.codec.decoders.frame:FrameDecoder",
    "harmonic": "model.codec.decoders.harmonic:HarmonicDecoder",
    "seanet": "model.codec.decoders.seanet:SEANetDecoder",
    "source_filter": "model.codec.decoders.source_filter:SourceFilterDecoder",
}
if TYPE_CHECKING:
    DecoderKind = str
    EncoderKind = str
else:  # the choices of the command line
    DecoderKind = Literal[tuple(DECODERS)]
    EncoderKind = Literal[tuple(ENCODERS)]


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec. Meta's `encodec_24khz` is ``CodecConfig.meta()``; the project's own is the default.

    The text beside a type is the field's line of help on the command line.
    """

    decoder: Annotated[DecoderKind, "what makes samples of codes"] = "frame"
    encoder: Annotated[EncoderKind, "what makes latents of samples"] = "seanet"
    n_filters: Annotated[int, "of SEANet's first convolution (Meta: 32)"] = 16
    lstm_layers: Annotated[int, "of SEANet"] = 2
    pad_mode: Annotated[
        Literal["constant", "reflect"], "constant: zeros, causal from the first sample on (Meta: reflect)"
    ] = "constant"
    codebooks: Annotated[int, "of the residual quantiser"] = MAX_CODEBOOKS
    frame_dim: Annotated[int, "width of the frame decoder"] = 256
    frame_blocks: Annotated[int, "of the frame decoder"] = 8
    frame_expansion: Annotated[int, "of the frame decoder's blocks"] = 3
    frame_kernel: Annotated[int, "frames that a block of the frame decoder sees"] = 7
    pitch_dim: Annotated[int, "of the network that reads the pitch; expansion and kernel are the frame decoder's"] = 128
    pitch_blocks: Annotated[int, "of the network that reads the pitch"] = 6
    encoder_dim: Annotated[int, "width of the spectral encoder"] = 256
    encoder_blocks: Annotated[int, "of the spectral encoder"] = 6
    encoder_expansion: Annotated[int, "of the spectral encoder's blocks"] = 2
    encoder_kernel: Annotated[int, "frames that a block of the spectral encoder sees"] = 5

    def __post_init__(self) -> None:
        """Raises ValueError on a kind that is not registered."""
        for part, kind, known in (("decoder", self.decoder, DECODERS), ("encoder", self.encoder, ENCODERS)):
            if kind not in known:
                raise ValueError(f"no {part} {kind!r}: there are {', '.join(known)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CodecConfig":
        """From the `codec` part of a bundle's config. Raises ValueError on an unknown key or kind."""
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


@dataclass(frozen=True)
class SourceFilterConfig(CodecConfig):
    """The same, with the third edition's defaults: what a new codec is. (Those above are an old bundle's.)"""

    decoder: Annotated[DecoderKind, "what makes samples of codes"] = "source_filter"
    encoder: Annotated[EncoderKind, "what makes latents of samples"] = "spectral"
    frame_blocks: Annotated[int, "of the decoder's trunk"] = 6
