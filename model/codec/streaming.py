"""The codec chunk by chunk, equal to the whole clip at once.

Nothing is overlapped or crossfaded: each layer carries the inputs that its next output needs.

* a convolution: its last (k - 1) d - (s - 1) inputs, (B, C, n);
* a transposed convolution: the part of its output that reaches into the next chunk, without its bias, (B, C, k - s);
* an LSTM: h and c, (layers, B, H) each;
* oscillators: phase (B,) and pitch (B,) in float64, and amplitudes (B, HARMONICS), of
  `model.codec.decoders.harmonic.Voice`;
* sources and filters: `model.codec.decoders.source_filter.Sources`;
* an analysis: the last 8192 samples.

A state begins empty (None). With zero padding that stands for zeros; with EnCodec's reflection the first chunk is
mirrored, as at the start of a clip, and must hold at least ``PRIMING_FRAMES`` frames.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.codec import Codec
from model.codec.decoders.frame import CausalConv, ConvNeXtBlock, FrameDecoder, FrameTrunk
from model.codec.decoders.harmonic import HarmonicDecoder, Voice
from model.codec.decoders.source_filter import RESPONSE, SourceFilterDecoder, Sources
from model.codec.encoders.spectral import LEFT_SAMPLES, SpectralEncoder
from model.constants import HOP_SAMPLES, VOCABULARY

PRIMING_FRAMES = 7  # the longest reflection at 75 Hz mirrors 6 frames, and needs one more to mirror at


class StreamingError(ValueError):
    """A chunk cannot be processed: its length, its rows, or a first chunk that is too short to be mirrored."""


@dataclass
class StreamState:
    """What the layers carry, in the order of execution; ``frames`` is the number of frames seen."""

    rows: int
    tensors: list[Tensor | None] = field(default_factory=list)
    row_dims: list[int] = field(default_factory=list)  # which dimension of each tensor counts the rows
    frames: int = 0

    def repeated(self, rows: int) -> "StreamState":
        """The state of one row, for ``rows`` rows that go on from it."""
        assert self.rows == 1, f"a state of {self.rows} rows cannot be repeated"
        tensors = [
            None if tensor is None else tensor.repeat_interleave(rows, dim)
            for tensor, dim in zip(self.tensors, self.row_dims, strict=True)
        ]
        return StreamState(rows, tensors, list(self.row_dims), self.frames)

    def joined(self, row: int, other: "StreamState", rows: int) -> "StreamState":
        """This state with ``row`` replaced by the one row of ``other``; made of ``rows`` rows when it is still empty.

        Rows of a batch may be at different frames: nothing here depends on how many came before, once there were some.
        """
        assert other.rows == 1 and all(tensor is not None for tensor in other.tensors), "a state of one row that began"
        base = self if self.tensors else other.repeated(rows)
        for mine, its, dim in zip(base.tensors, other.tensors, other.row_dims, strict=True):
            assert mine is not None and its is not None
            mine.select(dim, row).copy_(its.select(dim, 0))
        return base

    def move_on(self, after: "StreamState", active: Tensor) -> None:
        """Take over the rows of a later state where ``active`` (B,) bool, in place."""
        for old, new, dim in zip(self.tensors, after.tensors, self.row_dims, strict=True):
            assert new is not None and old is not None
            shape = [-1 if axis == dim else 1 for axis in range(new.dim())]
            old.copy_(torch.where(active.view(shape), new, old))


DecoderState = StreamState
EncoderState = StreamState


class _Carry:
    """Hands each layer what it left in the state, and keeps what it leaves now."""

    def __init__(self, state: StreamState) -> None:
        self.before = state.tensors
        self.after: list[Tensor | None] = []
        self.row_dims: list[int] = []

    def take(self) -> Tensor | None:
        place = len(self.after)
        return self.before[place] if place < len(self.before) else None

    def leave(self, tensor: Tensor | None, row_dim: int = 0) -> None:
        self.after.append(tensor)
        self.row_dims.append(row_dim)


def _convolution(conv: nn.Conv1d, x: Tensor, carry: _Carry, pad_mode: str) -> Tensor:
    """One convolution over the chunk: (B, C, n) -> (B, C', n / stride)"""
    left = (conv.kernel_size[0] - 1) * conv.dilation[0] - (conv.stride[0] - 1)
    if left == 0:
        return F.conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    before = carry.take()
    if before is not None:
        x = torch.cat([before, x], dim=-1)
    elif pad_mode == "reflect":
        if x.shape[-1] <= left:
            raise StreamingError(f"the first chunk is too short to be mirrored: give {PRIMING_FRAMES} frames or more")
        x = F.pad(x, (left, 0), mode="reflect")
    else:
        x = F.pad(x, (left, 0))
    carry.leave(x[..., -left:].clone())  # a view would keep the whole chunk alive
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _transposed(conv: nn.ConvTranspose1d, x: Tensor, carry: _Carry) -> Tensor:
    """One transposed convolution over the chunk: (B, C, n) -> (B, C', n stride)"""
    reach = conv.kernel_size[0] - conv.stride[0]
    out = F.conv_transpose1d(x, conv.weight, None, conv.stride)
    before = carry.take()
    if before is not None:
        out[..., :reach] += before
    whole = x.shape[-1] * conv.stride[0]
    carry.leave(out[..., whole:].clone())
    bias = 0.0 if conv.bias is None else conv.bias[:, None]
    return out[..., :whole] + bias


def _lstm(lstm: nn.LSTM, x: Tensor, skip: bool, carry: _Carry) -> Tensor:
    """An LSTM over the chunk: (B, C, n) -> (B, C, n)"""
    steps = x.permute(2, 0, 1)
    h, c = carry.take(), None
    if h is not None:
        c = carry.before[len(carry.after) + 1]
    out, (h, c) = lstm(steps, None if h is None else (h, c))
    carry.leave(h, row_dim=1)
    carry.leave(c, row_dim=1)
    mixed: Tensor = out + steps if skip else out
    return mixed.permute(1, 2, 0)


def _seanet(module: nn.Module, x: Tensor, carry: _Carry, pad_mode: str) -> Tensor:
    """One module of the package's SEANet, by the names of its classes."""
    kind = type(module).__name__
    if kind == "SConv1d":
        return _convolution(module.conv.conv, x, carry, pad_mode)  # type: ignore[union-attr, arg-type]
    if kind == "SConvTranspose1d":
        return _transposed(module.convtr.convtr, x, carry)  # type: ignore[union-attr, arg-type]
    if kind == "SLSTM":
        return _lstm(module.lstm, x, bool(module.skip), carry)  # type: ignore[arg-type]
    if kind == "SEANetResnetBlock":
        shortcut = _seanet(module.shortcut, x, carry, pad_mode)  # type: ignore[arg-type]
        for part in module.block:  # type: ignore[union-attr]
            x = _seanet(part, x, carry, pad_mode)
        return shortcut + x
    assert isinstance(module, nn.ELU | nn.Identity), f"no streaming form of {kind}"
    out: Tensor = module(x)
    return out


def _frame_convolution(conv: CausalConv, x: Tensor, carry: _Carry) -> Tensor:
    """A causal convolution at 75 Hz, frames last: (B, C, n) -> (B, C', n); one frame is a product."""
    left = conv.kernel_size[0] - 1
    before = carry.take()
    x = F.pad(x, (left, 0)) if before is None else torch.cat([before, x], dim=-1)
    carry.leave(x[..., 1:] if x.shape[-1] == left + 1 else x[..., -left:].clone())
    if x.shape[-1] > left + 1:
        return F.conv1d(x, conv.weight, conv.bias, groups=conv.groups)
    if conv.groups > 1:  # depthwise
        out = (x * conv.weight[:, 0]).sum(-1)
        out = out if conv.bias is None else out + conv.bias
    else:
        out = F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)
    return out[..., None]


def _blocks(blocks: nn.ModuleList, x: Tensor, carry: _Carry) -> Tensor:
    """ConvNeXt blocks over the chunk: (B, dim, n) -> (B, dim, n)"""
    for block in blocks:
        assert isinstance(block, ConvNeXtBlock)
        mixed = _frame_convolution(block.depthwise, x, carry)
        x = x + block.mix(mixed.transpose(1, 2)).transpose(1, 2)
    return x


def _features(trunk: FrameTrunk, latents: Tensor, carry: _Carry) -> Tensor:
    """`FrameTrunk.features` over the chunk: (B, 128, n) -> (B, n, dim)"""
    x = _blocks(trunk.blocks, _frame_convolution(trunk.entry, latents, carry), carry)
    normed: Tensor = trunk.norm(x.transpose(1, 2))
    return normed


def _harmonic(decoder: HarmonicDecoder, latents: Tensor, carry: _Carry) -> Tensor:
    """A `harmonic` decoder over the chunk: (B, 128, n) -> (B, 1, 320 n)"""
    frames = decoder.frame.frames_from(_features(decoder.frame, latents, carry))
    features = _features(decoder.reader, latents, carry)
    place = len(carry.after)
    phase, hertz, amplitudes = carry.before[place : place + 3] if carry.before else (None, None, None)
    before = None
    if phase is not None and hertz is not None and amplitudes is not None:
        before = Voice(phase, hertz, amplitudes)
    bins, shares = decoder.reader.read(features)
    samples, after = decoder.render(frames, shares, decoder.reader.pitch(bins), before)
    for tensor in after:
        carry.leave(tensor)
    return samples


def _source_filter(decoder: SourceFilterDecoder, latents: Tensor, carry: _Carry) -> Tensor:
    """A `source_filter` decoder over the chunk: (B, 128, n) -> (B, 1, 320 n)"""
    features = _features(decoder.trunk, latents, carry)
    place = len(carry.after)
    held = carry.before[place : place + len(Sources._fields)]
    before = Sources(*[tensor for tensor in held if tensor is not None]) if held else None
    samples, after = decoder.render(features, before)
    for tensor in after:
        carry.leave(tensor)
    return samples


def _spectral(encoder: SpectralEncoder, samples: Tensor, carry: _Carry) -> Tensor:
    """A `spectral` encoder over the chunk: (B, 320 n) -> (B, 128, n)"""
    left = carry.take()
    if left is None:
        left = samples.new_zeros(len(samples), LEFT_SAMPLES)
    carry.leave(torch.cat([left, samples], -1)[:, -LEFT_SAMPLES:].clone())
    features = torch.cat(list(encoder.analysis(samples, left).values()), -1)
    x = _frame_convolution(encoder.entry, features.transpose(1, 2), carry)
    x = _blocks(encoder.blocks, x, carry)
    latents: Tensor = encoder.out(encoder.norm(x.transpose(1, 2)))
    return latents.transpose(1, 2)


class StreamingDecoder:
    """Codes to samples, chunk by chunk, with the weights of a codec: shared, but for the codebooks, which it gathers
    into one table (4 MB) when it is made.
    """

    def __init__(self, codec: Codec) -> None:
        self.decoder = codec.decoder
        self.pad_mode = codec.config.pad_mode
        self.books = codec.codebooks().flatten(0, 1)  # (K 1024, 128)
        self.offsets = torch.arange(codec.config.codebooks, device=self.books.device)[:, None] * VOCABULARY

    @property
    def memory(self) -> int | None:
        """Frames that reach into the state; None when all of them do (an LSTM forgets nothing for certain).

        Of a `harmonic` or a `source_filter` decoder: all but the phase, of which only the change from frame to frame
        is heard, and the place in the noise and in the sines.
        """
        if isinstance(self.decoder, HarmonicDecoder):
            return 1 + max(self.decoder.frame.memory, self.decoder.reader.memory)  # 1: pitch and amplitudes before
        if isinstance(self.decoder, SourceFilterDecoder):
            return self.decoder.trunk.memory - (-RESPONSE // HOP_SAMPLES)  # what still rings began so many frames ago
        return self.decoder.memory if isinstance(self.decoder, FrameDecoder) else None

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
        carry = _Carry(state)
        x = self.books[codes + self.offsets[:books]].sum(1).transpose(1, 2)  # (B, 128, n)
        if isinstance(self.decoder, FrameDecoder):
            samples = self.decoder.frames_from(_features(self.decoder, x, carry)).flatten(1)[:, None]
        elif isinstance(self.decoder, HarmonicDecoder):
            samples = _harmonic(self.decoder, x, carry)
        elif isinstance(self.decoder, SourceFilterDecoder):
            samples = _source_filter(self.decoder, x, carry)
        else:
            for module in self.decoder.model:  # type: ignore[union-attr]
                x = _seanet(module, x, carry, self.pad_mode)
            samples = x
        return samples[:, 0], StreamState(rows, carry.after, carry.row_dims, state.frames + frames)


class StreamingEncoder:
    """Samples to codes, chunk by chunk, with the weights of a codec (shared, not copied)."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.pad_mode = codec.config.pad_mode

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
        carry = _Carry(state)
        x = samples[:, None]
        if isinstance(self.codec.encoder, SpectralEncoder):
            x = _spectral(self.codec.encoder, samples, carry)
        else:
            for module in self.codec.encoder.model:  # type: ignore[union-attr]
                x = _seanet(module, x, carry, self.pad_mode)
        after = StreamState(rows, carry.after, carry.row_dims, state.frames + count // HOP_SAMPLES)
        return self.codec.quantize(x), after
