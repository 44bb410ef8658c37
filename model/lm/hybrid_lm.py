"""The hybrid language model (Whisper-GPT, arXiv 2412.11449).

Position p of the input carries the coarse token and the mel frame of frame p - 1 (position 0: BOS and no mel), and
its output predicts the coarse token of frame p.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.constants import MEL_BANDS, VOCABULARY
from model.lm.config import DecoderConfig
from model.lm.depth_decoder import DepthDecoder
from model.lm.kv_cache import KVCache, SlotCache
from model.lm.transformer import RMSNorm, Stack

BOS = VOCABULARY


@dataclass
class LMCache:
    """What a sequence leaves behind: the caches of the mel blocks (None without mel) and of the stack."""

    mel: KVCache | None
    stack: KVCache

    @property
    def length(self) -> int:
        """Positions seen so far."""
        return self.stack.length

    def repeated(self, rows: int) -> "LMCache":
        """The cache of one row, for ``rows`` rows."""
        return LMCache(None if self.mel is None else self.mel.repeated(rows), self.stack.repeated(rows))


@dataclass
class LMSlots:
    """The rings of the mel blocks (None without mel) and of the stack, a row a slot."""

    mel: SlotCache | None
    stack: SlotCache

    def join(self, row: int, cache: LMCache) -> None:
        """The row goes on from a cache of one row."""
        self.stack.join(row, cache.stack)
        if self.mel is not None:
            assert cache.mel is not None, "a cache with mel belongs to a model with mel"
            self.mel.join(row, cache.mel)

    def left(self, row: int, length: int) -> LMCache:
        """A copy of what a row holds after ``length`` positions, as `join` takes it."""
        return LMCache(None if self.mel is None else self.mel.left(row, length), self.stack.left(row, length))

    def advance(self, active: Tensor) -> None:
        """Active rows (B,) bool have seen one position more."""
        for ring in (self.mel, self.stack):
            if ring is not None:
                ring.advance(active)

    def attend_to(self, slots: int) -> None:
        """Rows hold no more than so many positions: attend to these slots only."""
        for ring in (self.mel, self.stack):
            if ring is not None:
                ring.attended = min(slots, ring.window)


class MelEncoder(nn.Module):
    """Mel frames to a few features each: linear, light causal blocks, linear."""

    def __init__(self, config: DecoderConfig, round_cache: bool = True) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(config.mel_dim))  # stands for a mel frame that is not known
        self.entry = nn.Linear(MEL_BANDS, config.mel_dim)
        self.stack = Stack(config.mel_dim, config.mel_layers, config.mel_heads, config.window, round_cache)
        self.norm = RMSNorm(config.mel_dim)
        self.out = nn.Linear(config.mel_dim, config.mel_out, bias=False)

    def forward(self, mel: Tensor, masked: Tensor, cache: KVCache | SlotCache | None = None) -> Tensor:
        """Normalised mel frames (B, T, 64), masked (B, T) bool -> (B, T, mel_out)"""
        x = torch.where(masked[..., None], self.mask, self.entry(mel))
        out: Tensor = self.out(self.norm(self.stack(x, cache)))
        return out


class HybridLM(nn.Module):
    """Coarse tokens and mel frames in, logits of the next coarse token out; holds the depth decoder as ``fine``.

    ``round_cache``: compute with keys and values as a cache holds them (`model.lm.kv_cache.round_to_cache_dtype`), as
    all do that evaluate the model. It is no part of the shape, and no bundle stores it.
    """

    def __init__(self, config: DecoderConfig, round_cache: bool = True) -> None:
        super().__init__()
        self.config = config
        self.mel = MelEncoder(config, round_cache) if config.mel else None
        self.embedding = nn.Embedding(VOCABULARY + 1, config.dim - (config.mel_out if config.mel else 0))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.stack = Stack(config.dim, config.layers, config.heads, config.window, round_cache)
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, VOCABULARY, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.fine = DepthDecoder(config)
        # of the training set: they belong to the weights
        self.register_buffer("mel_mean", torch.zeros(MEL_BANDS))
        self.register_buffer("mel_std", torch.ones(MEL_BANDS))
        self.register_buffer("unigram", torch.full((VOCABULARY,), -math.log(VOCABULARY)))  # log-probabilities
        self.mel_mean: Tensor
        self.mel_std: Tensor
        self.unigram: Tensor

    def parameter_count(self, fine: bool = False) -> int:
        """Parameters, without the depth decoder unless ``fine``: the paper's models have none."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if fine else total - sum(parameter.numel() for parameter in self.fine.parameters())

    def set_round_cache(self, round_cache: bool) -> None:
        """Change ``round_cache``: a training steps without it, and evaluates with it."""
        for stack in (self.stack, None if self.mel is None else self.mel.stack):
            if stack is not None:
                stack.set_round_cache(round_cache)

    def new_cache(self, rows: int) -> LMCache:
        """An empty cache for ``rows`` sequences."""
        return LMCache(None if self.mel is None else self.mel.stack.new_cache(rows), self.stack.new_cache(rows))

    def new_slots(self, rows: int) -> LMSlots:
        """Empty rings for ``rows`` slots."""
        return LMSlots(None if self.mel is None else self.mel.stack.new_slots(rows), self.stack.new_slots(rows))

    def forward(
        self,
        tokens: Tensor,
        mel: Tensor | None = None,
        masked: Tensor | None = None,
        cache: LMCache | LMSlots | None = None,
    ) -> Tensor:
        """Hidden states, (B, T, dim).

        Args:
            tokens: (B, T) int64, the *input* token of each position; BOS leads a document.
            mel: (B, T, 64) log-mel as `LogMel` makes it, of the input token's frame; None = it is not known.
                Ignored by models without mel.
            masked: (B, T) bool, where the mel frame is not known; BOS positions never have one.
            cache: positions before these; it moves on (`LMSlots`, T = 1: when the caller advances it).
        """
        x = self.embedding(tokens)
        if self.mel is not None:
            unknown = tokens == BOS if masked is None else masked | (tokens == BOS)
            if mel is None:
                mel, unknown = self.mel_mean.expand(*tokens.shape, MEL_BANDS), torch.ones_like(unknown)
            features = self.mel((mel - self.mel_mean) / self.mel_std, unknown, cache.mel if cache else None)
            x = torch.cat([x, features.type_as(x)], dim=-1)
        hidden: Tensor = self.norm(self.stack(x, cache.stack if cache else None))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., 1024): of the next coarse token"""
        out: Tensor = self.head(hidden)
        return out


def shift(tokens: Tensor, mel: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Inputs that predict ``tokens`` (B, T): led by BOS, one frame late; the same for their mel frames (B, T, 64)."""
    inputs = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], dim=1)
    return inputs, None if mel is None else torch.cat([torch.zeros_like(mel[:, :1]), mel[:, :-1]], dim=1)
