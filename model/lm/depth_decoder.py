"""The depth decoder: codebooks 2 to K of a frame, one after the other.

An autoregressive sum in the manner of NADE (Larochelle and Murray, 2011): the stack's state, projected, plus the
embeddings of the codes drawn so far, then for each codebook a residual MLP and a head. One step is four small products.

With ``fine_recall`` the sum begins with the codes of the frame before as well. A mel frame says how a frame sounds, but
not which of many codes wrote it; neighbouring frames share much of that (docs/log.md has the figures).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.constants import VOCABULARY
from model.lm.config import DecoderConfig
from model.lm.transformer import RMSNorm

NO_CODE = VOCABULARY  # in the place of a code of the frame before, where there is no such frame


def frames_before(codes: Tensor) -> Tensor:
    """The codes of the frame before each frame of whole clips: (B, T, K) -> (B, T, K), `NO_CODE` before the first."""
    return torch.cat([torch.full_like(codes[:, :1], NO_CODE), codes[:, :-1]], dim=1)


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
        # `previous_frame`, under the name that it has in bundles and in the checkpoints of trainings
        self.recall = nn.Parameter(torch.zeros(books + 1, VOCABULARY + 1, dim)) if config.fine_recall else None
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    @property
    def previous_frame(self) -> nn.Parameter | None:
        """Embeddings of the codes of the frame before, (K, 1025, fine_dim); None without ``fine_recall``.

        The last row stands for "none", and stays zero.
        """
        return self.recall

    def start(self, hidden: Tensor, before: Tensor) -> Tensor:
        """The running sum before any code of the frame.

        hidden (..., dim of the stack); before (..., k) int64, the first k codes of the frame before, `NO_CODE` where
        there is none -> (..., fine_dim)
        """
        total: Tensor = self.entry(hidden)
        if self.previous_frame is not None:
            for book in range(before.shape[-1]):
                total = total + F.embedding(before[..., book], self.previous_frame[book], padding_idx=NO_CODE)
        return total

    @torch.no_grad()
    def begin_with(self, codebooks: Tensor, seed: int = 0) -> None:
        """Codes of the frame before start out as what they mean: the codec's vectors (K, 1024, 128), turned at random.

        The sum over the codebooks of a frame is then its quantised latent, with deviations near 1.
        """
        if self.previous_frame is None:
            return
        vectors = codebooks.float() - codebooks.float().mean(1, keepdim=True)
        deviation = vectors.square().mean((0, 1)).mul(len(vectors)).sqrt()  # of a sum of independent codes
        width, generator = self.previous_frame.shape[-1], torch.Generator().manual_seed(seed)
        turn = torch.randn(vectors.shape[-1], width, generator=generator)
        self.previous_frame[:, :VOCABULARY] = vectors / deviation @ turn / vectors.shape[-1] ** 0.5

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

    def run(
        self, hidden: Tensor, before: Tensor, coarse: Tensor, books: int, code_of: Callable[[Tensor, int], Tensor]
    ) -> None:
        """Go through codebooks 1 to ``books`` - 1 of a frame, each with the codes of those before it.

        hidden (..., dim of the stack); before (..., k) as in `start`; coarse (...) int64, the code of codebook 0.
        ``code_of(logits, book)`` is given the logits (..., 1024) of a codebook and returns its code (...): drawn from
        them, or known.
        """
        total, code = self.start(hidden, before), coarse
        for book in range(1, books):
            total = self.add(total, book - 1, code)
            code = code_of(self.logits(total, book), book)

    def forward(self, hidden: Tensor, codes: Tensor, before: Tensor) -> Tensor:
        """Teacher-forced: hidden (..., dim), codes and those before (..., K) int64 -> logits (..., K - 1, 1024)"""
        out: list[Tensor] = []

        def known(logits: Tensor, book: int) -> Tensor:
            out.append(logits)
            return codes[..., book]

        self.run(hidden, before, codes[..., 0], codes.shape[-1], known)
        return torch.stack(out, dim=-2)
