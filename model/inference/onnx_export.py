"""Parts of a bundle as ONNX, for those who have no Python: the encoder, and one step of the language model.

With both, and nothing of ours, audio can be scored: `encoder.onnx` makes codes and mel frames of samples, and
`lm_step.onnx` a position's logits from what came before. Both compute in float32, with weights inside the files.
"""

import os
import warnings
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import Bundle
from model.codec.encoders.spectral import Analysis, SpectralEncoder
from model.constants import HOP_SAMPLES, MEL_BANDS
from model.lm.hybrid_lm import BOS, HybridLM
from model.lm.kv_cache import round_to_cache_dtype
from model.lm.rotary import angles, rotate
from model.lm.transformer import Stack

ENCODER, STEP = "encoder.onnx", "lm_step.onnx"
MIN_FRAMES = 3
MAX_FRAMES = 75 * 48 * 3600  # two days, as the commands take


class ExportedEncoder(nn.Module):
    """Samples of a whole clip to its codes and mel frames.

    Spectra and their logarithms are computed in float64: where a clip is quiet, log-mel frames in float32 are off by a
    thousandth, torch's by another one than ONNX Runtime's (1.32), whose DFT has four times the error.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.encoder, self.mel = bundle.codec.encoder, deepcopy(bundle.mel).double()
        self.analysis: Analysis | None = None
        if isinstance(self.encoder, SpectralEncoder):
            self.analysis = deepcopy(self.encoder.analysis).double()
            self.analysis.expected = self.analysis.expected.to(torch.complex128)
        self.register_buffer("books", bundle.codec.codebooks(), persistent=False)
        self.books: Tensor

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 320 T) float32 at 24 kHz -> codes (1, K, T) int64, coarse first, and log-mel (1, T, 64)"""
        wide = samples.double()
        if self.analysis is None:
            latents = self.encoder(samples[:, None])
        else:
            assert isinstance(self.encoder, SpectralEncoder)
            latents = self.encoder.latents({name: part.float() for name, part in self.analysis(wide).items()})
        rest = latents.transpose(1, 2)  # (1, T, 128)
        codes = []
        for book in self.books:
            distance = rest.square().sum(-1, keepdim=True) - 2 * rest @ book.t() + book.square().sum(-1)
            nearest = distance.argmin(-1)  # (1, T)
            codes.append(nearest)
            rest = rest - F.embedding(nearest, book)
        return torch.stack(codes, 1), self.mel(wide).float()


class ExportedStep(nn.Module):
    """One position of the language model, given those before it.

    Keys and values come in and go out: the caller puts the new ones behind the old ones, and leaves out all but the
    last ``window`` - 1. They carry their position in their rotation, so their order does not count.
    """

    def __init__(self, lm: HybridLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, token: Tensor, mel: Tensor, position: Tensor, mel_past: Tensor, past: Tensor) -> list[Tensor]:
        """token (1,) int64: of the frame before, 1024 at the start; mel (1, 64): its log-mel; position (1,) int64: how
        many came before; mel_past and past (layers, 2, heads, P, D): keys, values of P positions.

        Returns logits (1, 1024) of the coarse token of this frame, and the position's own keys and values,
        (layers, 2, heads, 1, D).
        """
        lm = self.lm
        x = lm.embedding(token)  # (1, dim)
        mel_new = mel_past[:, :, :, :0]
        if lm.mel is not None:
            entered = lm.mel.entry((mel - lm.mel_mean) / lm.mel_std)
            entered = torch.where((token == BOS)[:, None], lm.mel.mask, entered)  # at the start there is no frame
            features, mel_new = self._stack(lm.mel.stack, entered, position, mel_past)
            x = torch.cat([x, lm.mel.out(lm.mel.norm(features))], dim=-1)
        x, new = self._stack(lm.stack, x, position, past)
        return [lm.logits(lm.norm(x)), mel_new, new]

    @staticmethod
    def _stack(stack: Stack, x: Tensor, position: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """(1, dim) -> (1, dim), and the new keys and values (layers, 2, heads, 1, D)"""
        cos, sin = angles(position, stack.width)  # (1, D // 2)
        new = []
        blocks: list[Any] = list(stack.blocks)
        for layer, block in enumerate(blocks):
            qkv = block.attention.qkv(block.attention_norm(x)).view(3, stack.heads, 1, stack.width)
            q, k, v = qkv[0], qkv[1], qkv[2]  # (H, 1, D) each
            q, k = rotate(q[None], cos, sin)[0], rotate(k[None], cos, sin)[0]
            k, v = round_to_cache_dtype(k), round_to_cache_dtype(v)
            keys, values = torch.cat([past[layer, 0], k], 1), torch.cat([past[layer, 1], v], 1)  # (H, P + 1, D)
            weights = torch.softmax(q @ keys.transpose(1, 2) * stack.width**-0.5, -1)
            x = x + block.attention.out((weights @ values).transpose(0, 1).reshape(1, -1))
            x = x + block.contract(F.gelu(block.expand(block.feed_norm(x))))
            new.append(torch.stack([k, v]))
        return x, torch.stack(new)


def empty_past(stack: Stack, positions: int = 0) -> Tensor:
    """Keys and values of no positions, or of so many zeros: (layers, 2, heads, positions, D)"""
    return torch.zeros(len(stack.blocks), 2, stack.heads, positions, stack.width)


@torch.no_grad()
def export(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes `encoder.onnx` and `lm_step.onnx` into the folder, of which each is whole, or what it was before.

    Needs onnx and onnxscript; raises ImportError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle = bundle.to("cpu")
    samples = torch.zeros(1, HOP_SAMPLES * 20)
    frames = torch.export.Dim("frames", min=MIN_FRAMES, max=MAX_FRAMES)
    seen = torch.export.Dim("seen", max=bundle.lm.config.window)
    mel_seen = seen if bundle.lm.mel is not None else None
    mel_past = empty_past(bundle.lm.stack if bundle.lm.mel is None else bundle.lm.mel.stack, 7)
    step = (torch.tensor([1]), torch.zeros(1, MEL_BANDS), torch.tensor([7]), mel_past, empty_past(bundle.lm.stack, 7))
    # Not optimised by onnxscript (0.7): it takes the floor of 1e-8 under a logarithm for an addition of nothing.
    with warnings.catch_warnings(), TemporaryDirectory(prefix=".export-", dir=folder) as made:
        warnings.simplefilter("ignore")  # the exporter's own, of how it is made
        torch.onnx.export(
            ExportedEncoder(bundle).eval(), (samples,), f"{made}/{ENCODER}", dynamo=True, optimize=False,
            external_data=False, verbose=False, input_names=["samples"], output_names=["codes", "mel"],
            dynamic_shapes={"samples": {1: HOP_SAMPLES * frames}},
        )  # fmt: skip
        torch.onnx.export(
            ExportedStep(bundle.lm).eval(), step, f"{made}/{STEP}", dynamo=True, optimize=False,
            external_data=False, verbose=False,
            input_names=["token", "mel", "position", "mel_past", "past"],
            output_names=["logits", "mel_new", "new"],
            dynamic_shapes={"token": None, "mel": None, "position": None, "mel_past": {3: mel_seen}, "past": {3: seen}},
        )  # fmt: skip
        for name in (ENCODER, STEP):
            os.replace(f"{made}/{name}", folder / name)
    return [folder / ENCODER, folder / STEP]
