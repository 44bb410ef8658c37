"""`model.codec.streaming.StreamingEncoder` for CPUs: the same interface, a compiled call a chunk without the GIL."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.codec.codec import Codec
from model.codec.streaming import StreamingError, StreamState
from model.constants import ENCODEC_RATIOS, HOP_SAMPLES, LATENT_DIM, VOCABULARY
from model.inference.numba_backend.arrays import check
from model.inference.numba_backend.cache import log_compilation
from model.inference.numba_backend.encoder_kernels import (
    ENTRY_KERNEL,
    FEW,
    HIGH_LEVELS,
    LAST_KERNEL,
    MANY,
    RESIDUAL_KERNEL,
    EncoderWeights,
    Level,
    Room,
    encode,
)  # fmt: skip
from model.inference.numba_backend.gemm import NARROW, TILE, WIDENS_HALVES, is_half, pack
from model.inference.numba_backend.weights import Array, array

NARROW_UP_TO = 32  # outputs: so many or fewer are packed in narrow tiles


def can_encode(codec: Codec) -> bool:
    """Is there a compiled encoder for this codec on its device?"""
    config, device = codec.config, next(codec.parameters()).device
    return config.encoder == "seanet" and config.pad_mode == "constant" and device.type == "cpu"


def _tile(outputs: int) -> int:
    return NARROW if outputs <= NARROW_UP_TO else TILE


def _filled(outputs: int) -> int:
    """Outputs, with those that fill up the last tile."""
    return -(-outputs // _tile(outputs)) * _tile(outputs)


class _Packer:
    """Packs convolutions and other matrices in one number format."""

    def __init__(self, half: bool) -> None:
        self.half = half

    def matrix(self, weight: Array) -> npt.NDArray[Any]:
        return pack(weight, self.half, _tile(len(weight)))

    def wide(self, weight: Array) -> npt.NDArray[Any]:
        return pack(weight, self.half)

    def convolution(self, module: nn.Module) -> tuple[npt.NDArray[Any], Array]:
        """Of the package's SConv1d: its matrix, time then channels, and its bias filled up to whole tiles."""
        inner: Any = module
        conv: nn.Conv1d = inner.conv.conv
        packed = self.matrix(array(conv.weight.permute(0, 2, 1).flatten(1)))
        bias = np.zeros(packed.shape[0] * packed.shape[2], np.float32)
        assert conv.bias is not None
        bias[: len(conv.bias)] = array(conv.bias)
        return packed, bias


def _weights(codec: Codec) -> tuple[EncoderWeights, int]:
    """The weights, and the length of the history."""
    modules: list[Any] = list(codec.encoder.model)  # type: ignore[arg-type]
    books = array(codec.codebooks())
    matrices = [array(p) for p in codec.encoder.parameters() if p.dim() > 1]
    packer = _Packer(WIDENS_HALVES and all(is_half(matrix) for matrix in [*matrices, books]))
    entry, entry_bias = packer.convolution(modules[0])
    at = ENTRY_KERNEL - 1
    levels = []
    for index, ratio in enumerate(reversed(ENCODEC_RATIOS)):
        block, down = modules[1 + 3 * index], modules[3 + 3 * index]
        channels = down.conv.conv.in_channels
        squeeze, squeeze_bias = packer.convolution(block.block[1])
        widen, widen_bias = packer.convolution(block.block[3])
        shortcut, shortcut_bias = packer.convolution(block.shortcut)
        down_matrix, down_bias = packer.convolution(down)
        bias = widen_bias + shortcut_bias
        levels.append(Level(channels, ratio, at, squeeze, squeeze_bias, widen, shortcut, bias, down_matrix, down_bias))
        at += (RESIDUAL_KERNEL - 1 + ratio) * channels
    top = 2 * levels[-1].channels
    lstms = [module.lstm for module in modules if type(module).__name__ == "SLSTM"]
    cells = [(lstm, layer) for lstm in lstms for layer in range(lstm.num_layers)]

    def each(name: str) -> list[Array]:
        return [array(getattr(lstm, f"{name}_l{layer}")) for lstm, layer in cells]

    def stacked(parts: list[npt.NDArray[Any]], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.stack(parts) if parts else np.zeros((0, *like.shape), like.dtype)

    example = packer.wide(np.zeros((4 * top, top), np.float32))
    biases = [a + b for a, b in zip(each("bias_ih"), each("bias_hh"), strict=True)]
    last, last_bias = packer.convolution(modules[-1])
    lstm_at, last_at = at, at + 2 * top * len(cells)
    weights = EncoderWeights(
        entry, entry_bias, tuple(levels),
        stacked([packer.wide(m) for m in each("weight_ih")], example),
        stacked([packer.wide(m) for m in each("weight_hh")], example),
        stacked(biases, np.zeros(4 * top, np.float32)), lstm_at, last, last_bias, last_at,
        np.stack([packer.wide(book) for book in books]), -0.5 * (books.astype(np.float64) ** 2).sum(-1), books,
    )  # fmt: skip
    weights = weights._replace(norms=weights.norms.astype(np.float32))
    check(weights)
    return weights, last_at + (LAST_KERNEL - 1) * top


# with the state that the weights were in
_packed: "WeakKeyDictionary[Codec, tuple[tuple[int, ...], EncoderWeights, int]]" = WeakKeyDictionary()


def _edition(codec: Codec) -> tuple[int, ...]:
    """Other numbers when a weight has changed: a codec may be trained further between two clips."""
    tensors = [*codec.encoder.state_dict().values(), *codec.quantizer.state_dict().values()]
    return tuple(n for t in tensors for n in (t.data_ptr(), 0 if t.is_inference() else t._version))


class CompiledEncoder:
    """Samples to codes, chunk by chunk, with the weights of a codec, which are packed once and shared."""

    def __init__(self, codec: Codec) -> None:
        """Raises ValueError for a codec that `can_encode` refuses."""
        if not can_encode(codec):
            raise ValueError("this codec has no compiled encoder")
        edition = _edition(codec)
        known = _packed.get(codec)
        if known is None or known[0] != edition:
            _packed[codec] = edition, *_weights(codec)
        _, self._weights, self._history = _packed[codec]
        if known is None:
            with log_compilation(encode, "encoder"):
                self._encode(np.empty((1, 0), np.float32), np.empty((1, self._history), np.float32))

    def start(self, rows: int) -> StreamState:
        """The state at the start of ``rows`` clips."""
        return StreamState(rows, torch.zeros(rows, self._history))

    def _rooms(self) -> tuple[Room, ...]:
        rate, rooms = HOP_SAMPLES, []
        levels = self._weights.levels
        for index, level in enumerate(levels):
            rows = rate * (FEW if index < HIGH_LEVELS else MANY)
            rooms.append(_room(rows, level.channels, max(RESIDUAL_KERNEL - 1, level.ratio)))
            rate //= level.ratio
        return *rooms, _room(MANY, 2 * levels[-1].channels, LAST_KERNEL - 1)

    def step(self, samples: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Samples (B, 320 n) -> codes (B, K, n) int64, and the state after them; whole frames only.

        The given state is left as it was. Raises StreamingError when the chunk does not fit it.
        """
        rows, count = samples.shape
        if rows != state.rows or count == 0 or count % HOP_SAMPLES:
            raise StreamingError(f"a chunk of {rows} rows and {count} samples for a state of {state.rows} rows")
        history = state.layers
        assert isinstance(history, Tensor)
        after = history.clone()
        codes = torch.from_numpy(self._encode(array(samples), after.numpy()))
        return codes, StreamState(rows, after, state.frames + count // HOP_SAMPLES)

    def _encode(self, samples: Array, history: Array) -> npt.NDArray[np.int64]:
        """Samples (B, 320 n) and histories (B, H), which move on, -> codes (B, K, n)"""
        rows, count = samples.shape
        assert count % HOP_SAMPLES == 0 and history.shape == (rows, self._history)
        assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in (samples, history))
        rooms = self._rooms()
        top = rooms[-1].x.shape[1]
        codes = np.empty((len(samples), len(self._weights.books), samples.shape[1] // HOP_SAMPLES), np.int64)
        latents, scores, gates = (np.empty((MANY, _filled(n)), np.float32) for n in (LATENT_DIM, VOCABULARY, 4 * top))
        sound = np.empty(ENTRY_KERNEL - 1 + FEW * HOP_SAMPLES, np.float32)
        for one, past, out in zip(samples, history, codes, strict=True):
            encode(one, self._weights, past, sound, rooms, gates, latents, scores, out)
        return codes


def _room(rows: int, width: int, held: int) -> Room:
    def buffer(columns: int) -> Array:
        return np.empty((rows, _filled(columns)), np.float32)

    return Room(buffer(width), np.empty((rows + held) * width, np.float32), buffer(-(-width // 2)), buffer(width))
