"""EnCodec's SEANet chunk by chunk: the modules of the `encodec` package, by the names of their classes.

Nothing is overlapped or crossfaded: each layer carries the inputs that its next output needs.

* a convolution: its last (k - 1) d - (s - 1) inputs, (B, C, n);
* a transposed convolution: the part of its output that reaches into the next chunk, without its bias, (B, C, k - s);
* an LSTM: `LSTMState`; a residual block: `ResidualState`; what carries nothing: ().

With zero padding no state stands for zeros. With EnCodec's reflection the first chunk is mirrored, as at the start of a
clip, and must hold at least ``PRIMING_FRAMES`` frames.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.interface import State, StreamingError
from model.constants import ENCODEC_RATIOS, LATENT_DIM

PRIMING_FRAMES = 7  # the longest reflection at 75 Hz mirrors 6 frames, and needs one more to mirror at


class LSTMState(NamedTuple):
    """Of all layers of an LSTM."""

    hidden: Tensor  # (B, layers, H)
    cell: Tensor  # (B, layers, H)


class ResidualState(NamedTuple):
    """Of a residual block, module by module."""

    shortcut: State
    block: tuple[State, ...]


class SEANetState(NamedTuple):
    """Of SEANet, module by module."""

    layers: tuple[State, ...]


def settings(config: CodecConfig) -> dict[str, Any]:
    """What the package's SEANet classes are made with."""
    return dict(
        channels=1, dimension=LATENT_DIM, n_filters=config.n_filters, ratios=list(ENCODEC_RATIOS), norm="none",
        causal=True, pad_mode=config.pad_mode, lstm=config.lstm_layers,
    )  # fmt: skip


def _convolution(conv: nn.Conv1d, x: Tensor, before: State | None, pad_mode: str) -> tuple[Tensor, State]:
    """(B, C, n) -> (B, C', n / stride)"""
    left = (conv.kernel_size[0] - 1) * conv.dilation[0] - (conv.stride[0] - 1)
    after: State = ()
    if left:
        if isinstance(before, Tensor):
            x = torch.cat([before, x], dim=-1)
        elif pad_mode == "reflect":
            if x.shape[-1] <= left:
                raise StreamingError(
                    f"the first chunk is too short to be mirrored: give {PRIMING_FRAMES} frames or more"
                )
            x = F.pad(x, (left, 0), mode="reflect")
        else:
            x = F.pad(x, (left, 0))
        after = x[..., -left:].clone()  # a view would keep the whole chunk alive
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups), after


def _transposed(conv: nn.ConvTranspose1d, x: Tensor, before: State | None) -> tuple[Tensor, State]:
    """(B, C, n) -> (B, C', n stride)"""
    overlap = conv.kernel_size[0] - conv.stride[0]
    out = F.conv_transpose1d(x, conv.weight, None, conv.stride)
    if isinstance(before, Tensor):
        out[..., :overlap] += before
    whole = x.shape[-1] * conv.stride[0]
    bias = 0.0 if conv.bias is None else conv.bias[:, None]
    return out[..., :whole] + bias, out[..., whole:].clone()


def _lstm(lstm: nn.LSTM, x: Tensor, skip: bool, before: LSTMState | None) -> tuple[Tensor, LSTMState]:
    """(B, C, n) -> (B, C, n)"""
    steps = x.permute(2, 0, 1)
    out, after = lstm(steps, None if before is None else tuple(part.transpose(0, 1).contiguous() for part in before))
    mixed: Tensor = out + steps if skip else out
    return mixed.permute(1, 2, 0), LSTMState(*(part.transpose(0, 1).contiguous() for part in after))


def _module(module: Any, x: Tensor, before: Any) -> tuple[Tensor, State]:
    kind = type(module).__name__
    if kind == "SConv1d":
        return _convolution(module.conv.conv, x, before, module.pad_mode)
    if kind == "SConvTranspose1d":
        return _transposed(module.convtr.convtr, x, before)
    if kind == "SLSTM":
        return _lstm(module.lstm, x, bool(module.skip), before)
    if kind == "SEANetResnetBlock":
        shortcut, shortcut_after = _module(module.shortcut, x, before and before.shortcut)
        x, after = _modules(module.block, x, before and before.block)
        return shortcut + x, ResidualState(shortcut_after, after)
    assert isinstance(module, nn.ELU | nn.Identity), f"no streaming form of {kind}"
    out: Tensor = module(x)
    return out, ()


def _modules(modules: nn.Sequential, x: Tensor, before: Any) -> tuple[Tensor, tuple[State, ...]]:
    after = []
    for module, state in zip(modules, before or [None] * len(modules), strict=True):
        x, left = _module(module, x, state)
        after.append(left)
    return x, tuple(after)


def stream(modules: nn.Sequential, x: Tensor, state: SEANetState | None) -> tuple[Tensor, SEANetState]:
    """All modules over a chunk, (B, C, n) -> (B, C', n'), and the state after it. Raises StreamingError."""
    x, after = _modules(modules, x, state and state.layers)
    return x, SEANetState(after)
