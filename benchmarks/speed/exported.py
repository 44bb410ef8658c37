"""The language model's step in a form that torch can export: for AOTInductor and for ONNX Runtime.

What is exported has a fixed number of rows and slots. Its caches are read and never written, a tensor a layer, so that
neither runtime copies them; it returns each layer's new key and value, which the caller puts into its slot.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.lm.hybrid_lm import HybridLM, LMCache
from model.lm.kv_cache import KVCache, round_to_cache_dtype
from model.lm.rotary import angles, rotate
from model.lm.transformer import Stack

Pair = tuple[Tensor, Tensor]  # a layer's keys (R, H, D, slots) and values (R, H, slots, D)


class ExportedStep(nn.Module):
    """Coarse token, mel frame and caches in; logits of the next coarse token, new keys and new values out."""

    def __init__(self, lm: HybridLM, slots: int) -> None:
        super().__init__()
        assert lm.mel is not None, "the hybrid"
        self.lm, self.slots = lm, slots
        for name, stack in (("mel", lm.mel.stack), ("stack", lm.stack)):
            cos, sin = angles(torch.arange(slots), stack.width)
            self.register_buffer(f"{name}_cos", cos, persistent=False)
            self.register_buffer(f"{name}_sin", sin, persistent=False)

    def forward(
        self, tokens: Tensor, mel: Tensor, lengths: Tensor, mel_caches: list[Pair], caches: list[Pair]
    ) -> tuple[Tensor, list[Pair], list[Pair]]:
        """tokens (R, 1) int64, mel (R, 1, 64), lengths (R,) int64: positions seen, below ``slots``.

        Returns logits (R, 1024), and of each layer the position's key and value, (R, H, D) each.
        """
        lm, encoder = self.lm, self.lm.mel
        assert encoder is not None
        x = encoder.entry((mel - lm.mel_mean) / lm.mel_std)
        x, mel_new = self._stack(encoder.stack, "mel", x, lengths, mel_caches)
        x = torch.cat([lm.embedding(tokens), encoder.out(encoder.norm(x))], dim=-1)
        x, new = self._stack(lm.stack, "stack", x, lengths, caches)
        return lm.logits(lm.norm(x))[:, 0], mel_new, new

    def _stack(
        self, stack: Stack, name: str, x: Tensor, lengths: Tensor, caches: list[Pair]
    ) -> tuple[Tensor, list[Pair]]:
        """(R, 1, dim) -> (R, 1, dim), and the new keys and values"""
        rows, _, dim = x.shape
        cos = getattr(self, f"{name}_cos")[lengths][:, None, None]  # (R, 1, 1, D // 2)
        sin = getattr(self, f"{name}_sin")[lengths][:, None, None]
        empty = (torch.arange(self.slots) >= lengths[:, None])[:, None, None]  # (R, 1, 1, slots)
        new: list[Pair] = []
        blocks: list[Any] = list(stack.blocks)
        for block, (keys, values) in zip(blocks, caches, strict=True):
            qkv = block.attention.qkv(block.attention_norm(x)).view(rows, 1, 3, stack.heads, stack.width)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (R, H, 1, D) each
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            k, v = round_to_cache_dtype(k), round_to_cache_dtype(v)
            past = (q @ keys).masked_fill(empty, -torch.inf)
            own = (q * k).sum(-1, keepdim=True)
            weights = torch.softmax(torch.cat([past, own], dim=-1) * stack.width**-0.5, dim=-1)
            mixed = weights[..., :-1] @ values + weights[..., -1:] * v
            x = x + block.attention.out(mixed.transpose(1, 2).reshape(rows, 1, dim))
            x = x + block.contract(F.gelu(block.expand(block.feed_norm(x))))
            new.append((k[:, :, 0], v[:, :, 0]))
        return x, new


class HostCaches:
    """What a caller of an exported step keeps between steps: all rows go on from one prompt."""

    def __init__(self, cache: LMCache, rows: int, slots: int) -> None:
        assert cache.mel is not None, "of the hybrid"
        self.mel, self.stack = self._filled(cache.mel, rows, slots), self._filled(cache.stack, rows, slots)
        self.lengths = np.full(rows, cache.length, np.int64)
        self._rows = np.arange(rows)

    @staticmethod
    def _filled(cache: KVCache, rows: int, slots: int) -> list[Pair]:
        assert cache.length < min(slots, cache.window), "a prompt that leaves slots free"
        pairs = []
        for keys, values in zip(
            cache.keys[:, 0, :, : cache.length], cache.values[:, 0, :, : cache.length], strict=True
        ):
            heads, seen, width = keys.shape
            own_keys, own_values = torch.zeros(rows, heads, width, slots), torch.zeros(rows, heads, slots, width)
            own_keys[..., :seen] = keys.transpose(1, 2)
            own_values[:, :, :seen] = values
            pairs.append((own_keys, own_values))
        return pairs

    def put(self, mel: list[tuple[Any, Any]], stack: list[tuple[Any, Any]]) -> None:
        """Each layer's new key and value, (R, H, D) each, into its slot; all rows have seen one position more."""
        for caches, new in ((self.mel, mel), (self.stack, stack)):
            for (keys, values), (key, value) in zip(caches, new, strict=True):
                keys.numpy()[self._rows, :, :, self.lengths] = key
                values.numpy()[self._rows, :, self.lengths] = value
        self.lengths += 1


class Inductor:
    """AOTInductor: C++ that torch writes, compiled by the system's compiler to a library."""

    def __init__(self, step: ExportedStep, example: tuple[Any, ...], folder: Path) -> None:
        import torch._inductor

        # or else what rounds keys and values to float16 is optimised away, and another model is computed
        torch._inductor.config.emulate_precision_casts = True
        with torch.no_grad():
            exported = torch.export.export(step, example)
            path = torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "step.pt2"))
        self._run = torch._inductor.aoti_load_package(path)

    def __call__(self, tokens: npt.NDArray[np.int64], mel: npt.NDArray[np.float32], caches: HostCaches) -> Any:
        """Logits (R, 1024) of one step"""
        logits, mel_new, new = self._run(
            torch.from_numpy(tokens), torch.from_numpy(mel), torch.from_numpy(caches.lengths), caches.mel, caches.stack
        )
        caches.put(*([(key.numpy(), value.numpy()) for key, value in pairs] for pairs in (mel_new, new)))
        return logits.numpy()


class OnnxRuntime:
    """ONNX Runtime on one thread, with all of its optimisations of graphs."""

    def __init__(self, step: ExportedStep, example: tuple[Any, ...], folder: Path) -> None:
        import onnxruntime

        path = folder / "step.onnx"
        with torch.no_grad():
            torch.onnx.export(step, example, str(path), dynamo=True, optimize=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]
        self._mel_layers = len(example[3])

    def __call__(self, tokens: npt.NDArray[np.int64], mel: npt.NDArray[np.float32], caches: HostCaches) -> Any:
        """Logits (R, 1024) of one step"""
        held = [tensor.numpy() for pair in (*caches.mel, *caches.stack) for tensor in pair]
        inputs = dict(zip(self._names, [tokens, mel, caches.lengths, *held], strict=True))
        logits, *new = self._session.run(None, inputs)
        pairs = list(zip(new[::2], new[1::2], strict=True))
        caches.put(pairs[: self._mel_layers], pairs[self._mel_layers :])
        return logits
