"""Drawing tokens from logits: temperature, top-k and top-p, with the numbers of `model.inference.rng`.

Quiet frames have few tokens, each of them likely; loud ones share theirs among hundreds. A temperature below 1, top-k
and top-p favour what is likely token by token, and so, frame after frame, what is quiet, until all is silent. So
temperature and top-p choose within *levels*, sets of coarse tokens about equally loud
(`model.checkpoint.Bundle.levels`), and each level that top-k leaves a token keeps the probability that the model gives
it (docs/method.md). A bundle without levels has them choose among all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.constants import MAX_SEED as MAX_SEED


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn. Temperature 0 is greedy; top_k 0 and top_p 1 are off.

    keep_level: leave each level its probability. Greedy takes the likeliest token whatever its level.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    keep_level: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature {self.temperature} is not within 0 and 2")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is negative")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p} is not within (0, 1]")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed {self.seed} is not within 0 and 2^63 - 1")


class RowOptions:
    """The options of a batch, a row each; (B, 1) tensors, and what none of the rows asks for is skipped.

    ``skip=False`` computes all of it always, with the same results: for a CUDA graph, whose operations are fixed.
    """

    def __init__(
        self, options: Sequence[SamplingOptions], device: torch.device | None = None, skip: bool = True
    ) -> None:
        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        self.temperature = column([one.temperature or 1.0 for one in options], torch.float64)
        self.greedy = column([one.temperature == 0.0 for one in options], torch.bool)
        self.top_k = column([one.top_k for one in options], torch.int64)
        self.top_p = column([one.top_p for one in options], torch.float64)
        # with none of the three, what is drawn has the levels' probabilities already
        self.by_level = column(
            [one.keep_level and (one.temperature != 1.0 or one.top_k > 0 or one.top_p < 1.0) for one in options],
            torch.bool,
        )
        self.some_by_level = not skip or bool(self.by_level.any())
        self.some_greedy = not skip or any(one.temperature == 0.0 for one in options)
        self.some_top_k = not skip or any(one.top_k > 0 for one in options)
        self.some_top_p = not skip or any(one.top_p < 1.0 for one in options)

    def copy_(self, other: "RowOptions") -> None:
        """Take over the values of another, in place."""
        for name in ("temperature", "greedy", "top_k", "top_p", "by_level"):
            getattr(self, name).copy_(getattr(other, name), non_blocking=True)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of most likely tokens that reaches ``top_p``, over its sum: (..., V), (..., 1) -> (..., V)"""
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    beyond = (ranked.cumsum(-1) - ranked >= top_p) & (top_p < 1.0)
    nucleus = probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    return torch.where(top_p < 1.0, nucleus / nucleus.sum(-1, keepdim=True), probabilities)


def probabilities(logits: Tensor, options: SamplingOptions | RowOptions, level_of: Tensor | None = None) -> Tensor:
    """What is drawn from: logits (B, V) -> (B, V) float64, after temperature, then top-k, then top-p.

    top-k keeps ties of the k-th; top-p keeps the smallest set of most likely tokens that reaches it. What one row asks
    for leaves the others as they are, to the bit.

    level_of: (L, V) bool, which tokens are of which level (`Bundle.level_of`). For rows that keep the level,
    temperature and top-p work within each level, and the levels that top-k leaves any tokens keep the probability that
    the logits alone give them.
    """
    rows = options if isinstance(options, RowOptions) else RowOptions([options], logits.device)
    logits = logits.double()
    # from the maximum: a temperature near 0 would make every large logit infinite, and their softmax NaN
    scaled = (logits - logits.amax(-1, keepdim=True)) / rows.temperature
    if rows.some_top_k:
        ranked = scaled.sort(dim=-1, descending=True).values
        kth = ranked.gather(-1, (rows.top_k - 1).clamp(0, logits.shape[-1] - 1).expand(len(logits), 1))
        scaled = scaled.masked_fill((scaled < kth) & (rows.top_k > 0), -torch.inf)
    probabilities = scaled.softmax(-1)
    if rows.some_top_p:
        probabilities = _nucleus(probabilities, rows.top_p)
    if level_of is None or not rows.some_by_level:
        return probabilities
    shares = logits.softmax(-1)[:, None].where(level_of, 0.0).sum(-1, keepdim=True)  # (B, L, 1)
    within = scaled[:, None].where(level_of, -torch.inf).softmax(-1).nan_to_num(0.0)  # a level without a token is NaN
    if rows.some_top_p:
        within = _nucleus(within, rows.top_p[:, None]).nan_to_num(0.0)
    kept = (within * shares).sum(1)
    return torch.where(rows.by_level, kept / kept.sum(-1, keepdim=True), probabilities)


def draw(
    logits: Tensor, options: SamplingOptions | RowOptions, uniform: Tensor, level_of: Tensor | None = None
) -> Tensor:
    """One token a row: logits (B, V), uniform (B,) float64 in [0, 1) -> (B,) int64, by inverting the distribution.

    Every operation works within its row, so a row's token does not depend on its neighbours.
    """
    rows = options if isinstance(options, RowOptions) else RowOptions([options], logits.device)
    cdf = probabilities(logits, rows, level_of).cumsum(-1)
    target = uniform.to(cdf)[:, None] * cdf[:, -1:]  # its last value, not 1: rounding must not step past it
    drawn = (cdf > target).to(torch.uint8).argmax(-1)  # the first value above: never a token of probability 0
    return torch.where(rows.greedy[:, 0], logits.argmax(-1), drawn) if rows.some_greedy else drawn


def draw_scored(
    logits: Tensor, options: RowOptions, uniform: Tensor, level_of: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `draw`, and each token's log-probability before temperature, top-k and top-p: (B,) int64 and (B,) float32"""
    token = draw(logits, options, uniform, level_of)
    return token, logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0]
