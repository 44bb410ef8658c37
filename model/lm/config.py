"""Shapes of the language model. The paper's trio differs in nothing but its config."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from model.constants import MAX_CODEBOOKS


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the hybrid language model and of its depth decoder."""

    dim: int = 256
    layers: int = 4
    heads: int = 4
    window: int = 512  # positions that each layer attends to, itself included: 6.8 s
    mel: bool = True
    mel_dim: int = 64
    mel_layers: int = 2
    mel_heads: int = 2
    mel_out: int = 32
    codebooks: int = MAX_CODEBOOKS
    fine_dim: int = 192
    fine_recall: bool = False  # the depth decoder knows the codes of the frame before, all of them

    def __post_init__(self) -> None:
        """Raises ValueError on widths that do not divide."""
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim {self.dim} does not give {self.heads} heads of an even width")
        if self.mel and (self.mel_dim % self.mel_heads or self.mel_out >= self.dim):
            raise ValueError(f"mel widths {self.mel_dim}, {self.mel_heads}, {self.mel_out} do not fit dim {self.dim}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DecoderConfig":
        """From the `decoder` part of a bundle's config. Raises ValueError on an unknown key."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown decoder settings: {', '.join(sorted(unknown))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PRESETS = {
    "hybrid-4m": DecoderConfig(fine_recall=True),
    "gpt-s": DecoderConfig(mel=False, fine_recall=True),
    "gpt-l": DecoderConfig(dim=512, layers=12, heads=8, mel=False, fine_recall=True),
    "tiny": DecoderConfig(
        dim=32,
        layers=2,
        heads=2,
        window=48,
        mel_dim=16,
        mel_layers=1,
        mel_heads=2,
        mel_out=8,
        fine_dim=16,
        fine_recall=True,
    ),
}
