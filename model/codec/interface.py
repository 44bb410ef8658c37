"""What an encoder and a decoder of the codec are, and the states that they stream with.

A state is a tree of named tuples with tensors at its leaves, rows first, so that rows can be repeated, replaced and
moved on without knowing what is in them (`model.codec.streaming`). None is the state before a clip's first chunk.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeAlias

from torch import Tensor, nn

from model.codec.config import CodecConfig

State: TypeAlias = Tensor | tuple["State", ...]


class StreamingError(ValueError):
    """A chunk cannot be processed: its length, its rows, or a first chunk that is too short to be mirrored."""


def map_tensors(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """A state of the same names, each tensor being ``function`` of those at its place in the given states."""
    if isinstance(state, Tensor):
        return function(state, *others)
    parts = [map_tensors(function, *parts) for parts in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def tensors_of(state: State | None) -> Iterator[Tensor]:
    """All tensors of a state; none of None."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state or ():
            yield from tensors_of(part)


class _Streaming(nn.Module, ABC):
    """A causal network that can also be run chunk by chunk."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: CodecConfig) -> Self:
        """One of random weights."""

    @abstractmethod
    def forward(self, x: Tensor, /) -> Tensor:
        """A whole clip."""

    @abstractmethod
    def stream(self, x: Tensor, /, state: Any) -> tuple[Tensor, Any]:
        """What `forward` gives for the next part of a clip, and the state after it.

        ``state``: what the part before left; None at the start of a clip. It stays as it is, and what is returned must
        not keep a whole chunk alive. Raises StreamingError when a chunk is too short to begin with.
        """


class Encoder(_Streaming):
    """Samples (B, 1, 320 T) to latents (B, 128, T). A kind is registered in `model.codec.config.ENCODERS`."""


class Decoder(_Streaming):
    """Latents (B, 128, T) to samples (B, 1, 320 T). A kind is registered in `model.codec.config.DECODERS`."""

    @property
    def receptive_field(self) -> int | None:
        """Frames before the present one that reach into the state, so that those before them need not be decoded.

        None: all of them do (an LSTM forgets nothing for certain). A phase does not count: only its change from frame
        to frame is heard.
        """
        return None

    @property
    def output_layer(self) -> nn.Conv1d | nn.Linear:
        """What a training begins with a tenth of, so that the first output is quiet: here the last convolution."""
        return [module for module in self.modules() if isinstance(module, nn.Conv1d)][-1]
