"""What a step could take at best: its operations and bytes, against what this machine reaches.

The peaks are measured in the process that measures the steps: products as fast as any library here makes them, and a
read of as many bytes as the step touches, over and over, so that what fits a cache is read from it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from model.checkpoint import Bundle
from model.constants import MEL_BANDS, VOCABULARY
from model.inference.numba_backend.gemm import add_product, pack
from model.lm.config import DecoderConfig

HALF, SINGLE = 2, 4  # bytes


@dataclass(frozen=True)
class Work:
    """What one step must do: floating-point operations, and bytes that it must read."""

    operations: float
    weight_bytes: float
    cache_bytes: float

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes


def block_weights(dim: int) -> int:
    """Numbers in the matrices of one block: queries, keys and values, output, and an MLP of 4 dim."""
    return 3 * dim * dim + dim * dim + 2 * 4 * dim * dim


def token_work(config: DecoderConfig, rows: int, positions: int, weight_width: int = HALF) -> Work:
    """One position of the stack and of the mel blocks, up to the logits of the coarse token.

    positions: that each row attends to. Two operations a weight and row, and for attention two products with as many
    keys and values.
    """
    held = min(positions, config.window)
    weights = config.layers * block_weights(config.dim) + config.dim * VOCABULARY
    cached = config.layers * 2 * held * config.dim
    if config.mel:
        weights += config.mel_layers * block_weights(config.mel_dim) + config.mel_dim * (MEL_BANDS + config.mel_out)
        cached += config.mel_layers * 2 * held * config.mel_dim
    return Work(2.0 * rows * (weights + cached), float(weights * weight_width), float(rows * cached * HALF))


def frame_work(bundle: Bundle, rows: int, positions: int, codebooks: int, weight_width: int = HALF) -> Work:
    """One frame of the closed loop: the token, the depth decoder and the codec's decoder.

    Each of their matrices is used once a row. Left out, at most 3 % of it: the mel frame (a transform of 1,024), and
    the lines of codebooks and embeddings that a step looks up.
    """
    token = token_work(bundle.lm.config, rows, positions, weight_width)
    dim, hidden = bundle.lm.config.fine_dim, bundle.lm.config.dim
    fine = dim * hidden + (codebooks - 1) * (4 * dim * dim + dim * VOCABULARY) if codebooks > 1 else 0
    sound = sum(p.numel() for p in bundle.codec.decoder.parameters() if p.dim() > 1)
    added = fine + sound
    return Work(
        token.operations + 2.0 * rows * added, token.weight_bytes + float(added * weight_width), token.cache_bytes
    )


def fastest(run: Callable[[], object], repeats: int = 12) -> float:
    """The least processor seconds of one run."""
    run()
    best = float("inf")
    for _ in range(repeats):
        begin = time.thread_time()
        run()
        best = min(best, time.thread_time() - begin)
    return best


def peak_operations() -> float:
    """Float32 operations a second of one thread: torch's product of large matrices, or ours of a batch of rows."""
    size = 1024
    square = torch.randn(size, size)
    library = 2.0 * size**3 / fastest(lambda: square @ square)
    rows, inputs, outputs, repeats = 4, 256, 256, 64
    weights = pack(np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32), True)
    x, y = np.ones((rows, inputs), np.float32), np.zeros((rows, outputs), np.float32)

    def products() -> None:
        for _ in range(repeats):
            add_product(x, weights, y, rows)

    return max(library, 2.0 * rows * inputs * outputs * repeats / fastest(products))


def read_bandwidth(count: float) -> float:
    """Bytes a second at which one thread reads so many bytes again and again."""
    buffer = torch.ones(max(int(count) // SINGLE, 1024))
    repeats = max(1, int(64e6 // (buffer.numel() * SINGLE)))

    def read() -> None:
        for _ in range(repeats):
            buffer.sum()

    return buffer.numel() * SINGLE * repeats / fastest(read)


@dataclass(frozen=True)
class Roof:
    """The machine's peaks."""

    operations: float  # a second

    @classmethod
    def measured(cls) -> "Roof":
        return cls(peak_operations())

    def limit(self, work: Work) -> dict[str, float]:
        """The least milliseconds of a step, with what they come from."""
        bandwidth = read_bandwidth(work.bytes)
        computing, reading = work.operations / self.operations * 1e3, work.bytes / bandwidth * 1e3
        return {
            "operations": work.operations,
            "weight_bytes": work.weight_bytes,
            "cache_bytes": work.cache_bytes,
            "operations_a_second": self.operations,
            "bytes_a_second": bandwidth,
            "computing_ms": computing,
            "reading_ms": reading,
            "limit_ms": max(computing, reading),
        }
