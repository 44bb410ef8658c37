"""The codec chunk by chunk, equal to the whole clip at once.

Each encoder and decoder streams by itself (`model.codec.interface`); here are the rows' states, and codes in the place
of latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.codec.codec import Codec
from model.codec.interface import State, map_tensors, tensors_of
from model.codec.interface import StreamingError as StreamingError
from model.constants import HOP_SAMPLES, VOCABULARY


@dataclass
class StreamState:
    """What an encoder or a decoder carries from chunk to chunk, of ``rows`` clips.

    ``layers`` is its own named state, rows first, and None before the first chunk; ``frames`` counts the frames so far.
    """

    rows: int
    layers: State | None = None
    frames: int = 0

    @property
    def tensors(self) -> list[Tensor]:
        """All that is in it, rows first, in the order of the names."""
        return list(tensors_of(self.layers))

    def repeated(self, rows: int) -> "StreamState":
        """The state of one row, for ``rows`` rows that go on from it."""
        assert self.rows == 1, f"a state of {self.rows} rows cannot be repeated"
        if self.layers is None:
            return StreamState(rows, None, self.frames)
        repeated = map_tensors(lambda tensor: tensor.repeat_interleave(rows, 0), self.layers)
        return StreamState(rows, repeated, self.frames)

    def joined(self, row: int, other: "StreamState", rows: int) -> "StreamState":
        """This state with ``row`` replaced by the one row of ``other``; made of ``rows`` rows when it is still empty.

        Rows of a batch may be at different frames: nothing here depends on how many came before, once there were some.
        """
        assert other.rows == 1 and other.layers is not None, "a state of one row that began"
        base = other.repeated(rows) if self.layers is None else self
        for mine, its in zip(base.tensors, other.tensors, strict=True):
            mine[row] = its[0]
        return base

    def left(self, row: int) -> "StreamState":
        """A copy of one row's state, as `joined` takes it."""
        assert self.layers is not None, "a state that began"
        return StreamState(1, map_tensors(lambda tensor: tensor[row : row + 1].clone(), self.layers), self.frames)

    def move_on(self, after: "StreamState", active: Tensor) -> None:
        """Take over the rows of a later state where ``active`` (B,) bool, in place."""
        for old, new in zip(self.tensors, after.tensors, strict=True):
            old.copy_(torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old))


DecoderState = StreamState
EncoderState = StreamState


class StreamingDecoder:
    """Codes to samples, chunk by chunk, with the weights of a codec: shared, but for the codebooks, which it gathers
    into one table (4 MB) when it is made.
    """

    def __init__(self, codec: Codec) -> None:
        self.decoder = codec.decoder
        self.books = codec.codebooks().flatten(0, 1)  # (K 1024, 128)
        self.offsets = torch.arange(codec.config.codebooks, device=self.books.device)[:, None] * VOCABULARY

    def start(self, rows: int) -> DecoderState:
        """The state at the start of ``rows`` clips."""
        return StreamState(rows)

    def step(self, codes: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Codes (B, k, n) int64 of the next n frames -> their samples (B, 320 n), and the state after them.

        The given state is left as it was. Raises StreamingError when the chunk does not fit it.
        """
        rows, books, frames = codes.shape
        if rows != state.rows or frames == 0:
            raise StreamingError(f"a chunk of {rows} rows and {frames} frames for a state of {state.rows} rows")
        latents = self.books[codes + self.offsets[:books]].sum(1).transpose(1, 2)  # (B, 128, n)
        samples, after = self.decoder.stream(latents, state.layers)
        return samples[:, 0], StreamState(rows, after, state.frames + frames)


class StreamingEncoder:
    """Samples to codes, chunk by chunk, with the weights of a codec (shared, not copied)."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def start(self, rows: int) -> EncoderState:
        """The state at the start of ``rows`` clips."""
        return StreamState(rows)

    def step(self, samples: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Samples (B, 320 n) -> codes (B, K, n) int64, and the state after them; whole frames only.

        The given state is left as it was. Raises StreamingError when the chunk does not fit it.
        """
        rows, count = samples.shape
        if rows != state.rows or count == 0 or count % HOP_SAMPLES:
            raise StreamingError(f"a chunk of {rows} rows and {count} samples for a state of {state.rows} rows")
        latents, after = self.codec.encoder.stream(samples[:, None], state.layers)
        return self.codec.quantize(latents), StreamState(rows, after, state.frames + count // HOP_SAMPLES)
