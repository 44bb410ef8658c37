"""The depth decoder: codebooks 2 to K of a frame, one after the other.

An autoregressive sum in the manner of NADE (Larochelle and Murray, 2011): the stack's state, projected, plus the
embeddings of the codes drawn so far, then for each codebook a residual MLP and a head. One step is four small products.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecoderConfig
from model.constants import VOCABULARY
from model.transformer import RMSNorm


class DepthDecoder(nn.Module):
    """Logits of the fine codes of a frame, given the state that predicted its coarse token."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim, books = config.fine_dim, config.codebooks - 1
        self.entry = nn.Linear(config.dim, dim, bias=False)
        # codes[j] as it conditions the codebooks after it; the last codebook conditions none
        self.embeddings = nn.ModuleList(nn.Embedding(VOCABULARY, dim) for _ in range(books))
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(books))
        self.expands = nn.ModuleList(nn.Linear(dim, 2 * dim, bias=False) for _ in range(books))
        self.contracts = nn.ModuleList(nn.Linear(2 * dim, dim, bias=False) for _ in range(books))
        self.head_norms = nn.ModuleList(RMSNorm(dim) for _ in range(books))
        self.heads = nn.ModuleList(nn.Linear(dim, VOCABULARY, bias=False) for _ in range(books))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def start(self, hidden: Tensor) -> Tensor:
        """The running sum before any code: (..., dim of the stack) -> (..., fine_dim)"""
        total: Tensor = self.entry(hidden)
        return total

    def add(self, total: Tensor, book: int, codes: Tensor) -> Tensor:
        """The running sum with codebook ``book`` (0 = coarse) known: codes (...) int64."""
        added: Tensor = total + self.embeddings[book](codes)
        return added

    def logits(self, total: Tensor, book: int) -> Tensor:
        """Logits of codebook ``book`` (1 to K - 1), from the sum over the codebooks before it: (..., 1024)"""
        index = book - 1
        x = total + self.contracts[index](F.gelu(self.expands[index](self.norms[index](total))))
        out: Tensor = self.heads[index](self.head_norms[index](x))
        return out

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: hidden (..., dim), codes (..., K) int64 -> logits (..., K - 1, 1024)"""
        total = self.start(hidden)
        out = []
        for book in range(1, codes.shape[-1]):
            total = self.add(total, book - 1, codes[..., book - 1])
            out.append(self.logits(total, book))
        return torch.stack(out, dim=-2)
