"""Which backend computes: its protocol, and the choice of the fastest for a checkpoint on its device."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from model.checkpoint import Bundle
from model.codec.codec import Codec
from model.codec.streaming import EncoderState, StreamingEncoder
from model.inference.sampling import SamplingOptions
from model.inference.torch_backend import TorchBackend
from model.inference.types import Frames, PromptState, RowSnapshot


class Backend(Protocol):
    """What the engine needs of slots."""

    rows: int
    codebooks: int

    def join(self, row: int, prompt: PromptState | RowSnapshot, options: SamplingOptions, choice: int = 0) -> None: ...
    def snapshot(self, row: int) -> RowSnapshot: ...
    def leave(self, row: int) -> None: ...
    def step(self, active: Sequence[int]) -> Frames: ...


class AnyEncoder(Protocol):
    """Samples to codes, chunk by chunk, as `model.codec.streaming.StreamingEncoder` does it."""

    def start(self, rows: int) -> EncoderState: ...
    def step(self, samples: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]: ...


def compiles(bundle: Bundle) -> bool:
    """Is there a compiled step (`model.inference.numba_backend`) for this bundle on its device?"""
    from model.inference.numba_backend.backend import can_compile  # numba takes a second to import

    return can_compile(bundle)


def default_slots(bundle: Bundle) -> int:
    """Slots that suit the device: what one processor core or one GPU can step in real time, by measurement.

    (Torch computes all of its rows at every step; 4 is the fewest that keep rows independent of each other.)
    """
    return 64 if bundle.device.type == "cuda" else 32 if compiles(bundle) else 4


def workers_for(bundle: Bundle, threads: int) -> int:
    """How many sets of slots may step at the same time: one a core, and one where torch computes."""
    return threads if compiles(bundle) else 1


def backend_for(bundle: Bundle, rows: int, codebooks: int | None = None) -> Backend:
    """The fastest slots for a bundle on its device."""
    if compiles(bundle):
        from model.inference.numba_backend.backend import NumbaBackend

        return NumbaBackend(bundle, rows, codebooks)
    return TorchBackend(bundle, rows, codebooks)


def encoder_for(codec: Codec) -> AnyEncoder:
    """The fastest encoder for a codec on its device."""
    from model.inference.numba_backend.encoder import CompiledEncoder, can_encode

    return CompiledEncoder(codec) if can_encode(codec) else StreamingEncoder(codec)
