"""Drawing means what `model.inference.sampling` means."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.inference.numba_backend.arrays import zeros
from model.inference.numba_backend.sampler import Options, draw
from model.inference.numba_backend.weights import level_tables
from model.inference.sampling import SamplingOptions, probabilities
from model.inference.sampling import draw as reference

SIZE = 1024


def compiled(
    logits: np.ndarray, options: SamplingOptions, uniform: float, levels: Sequence[int] = ()
) -> tuple[int, float]:
    drawn_from, within, work = np.zeros((3, SIZE), np.float32)
    asked = zeros(Options, rows=2)  # of which the second is asked
    for name in Options._fields:
        getattr(asked, name)[1] = getattr(options, name)
    token, logprob = draw(logits, SIZE, asked, 1, True, level_tables(levels), uniform, drawn_from, within, work)
    return int(token), float(logprob)


@given(
    seed=st.integers(0, 10_000), spread=st.floats(0.1, 8), temperature=st.floats(0.05, 2.0),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 1023, 1024, 5000]), top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    ties=st.booleans(), levels=st.sampled_from([0, 1, 2, 8]), keep_level=st.booleans(),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_what_can_be_drawn(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float, ties: bool, levels: int, keep_level: bool
) -> None:
    """The token stands where the number falls in the reference's cdf, but for rounding at an edge."""
    rng = np.random.default_rng(seed)
    level = rng.permutation(np.arange(SIZE) % levels) if levels else np.zeros(0, int)
    logits = (rng.standard_normal(SIZE) * spread).astype(np.float32)
    if ties:
        logits = (np.round(logits * 4) / 4).astype(np.float32)
    options = SamplingOptions(temperature, top_k, top_p, keep_level=keep_level)
    level_of = torch.from_numpy(level == np.arange(levels)[:, None]) if levels > 1 else None
    # the rounding of a float32 may move a token over the edge of the set that top-p keeps: either is right
    near = {top_p, max(top_p - 1e-5, 1e-6), min(top_p + 1e-5, 1.0)} if top_p < 1 else {top_p}
    cdfs = []
    for edge in near:
        expected = probabilities(torch.from_numpy(logits)[None], replace(options, top_p=edge), level_of)[0].numpy()
        cdfs.append(np.concatenate([[0.0], np.cumsum(expected)]))
    for uniform in rng.random(5):
        token, logprob = compiled(logits, options, uniform, level.tolist())
        assert any(cdf[token] - 1e-5 <= uniform <= cdf[token + 1] + 1e-5 for cdf in cdfs)
        exact = torch.from_numpy(logits).double().log_softmax(-1)[token]
        assert math.isclose(logprob, float(exact), abs_tol=2e-5)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = np.zeros(SIZE, np.float32)
    logits[[100, 700]] = 3.0
    assert compiled(logits, SamplingOptions(temperature=0.0), 0.99)[0] == 100
    assert int(reference(torch.from_numpy(logits)[None], SamplingOptions(temperature=0.0), torch.zeros(1))[0]) == 100


def test_top_p_keeps_the_first_of_equals() -> None:
    logits = np.zeros(SIZE, np.float32)
    options = SamplingOptions(top_p=0.25)
    assert compiled(logits, options, 0.9999)[0] == 255  # a quarter of 1024 tokens that are all alike
    logits[5] = 10.0
    assert compiled(logits, options, 0.9999)[0] == 5  # it alone holds more than a quarter


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
def test_never_a_token_of_no_chance(uniform: float) -> None:
    logits = np.full(SIZE, -80.0, np.float32)
    logits[[3, 900]] = 5.0
    for options in (SamplingOptions(top_k=2), SamplingOptions(top_p=0.9), SamplingOptions(temperature=0.01)):
        assert compiled(logits, options, uniform)[0] in (3, 900)


def test_a_nan_is_told() -> None:
    logits = np.zeros(SIZE, np.float32)
    logits[17] = np.nan
    token, logprob = compiled(logits, SamplingOptions(), 0.5)
    assert token == 0 and math.isnan(logprob)


def test_a_level_keeps_its_probability() -> None:
    """A quiet token that is the likeliest of all is drawn as often at a low temperature as the model says: not more."""
    logits = np.zeros(SIZE, np.float32)
    logits[7] = np.log(1024 / 4)  # a fifth of all, and the only one of its level
    levels = [0 if token == 7 else 1 for token in range(SIZE)]
    chance = 256 / (256 + 1023)
    for options in (SamplingOptions(0.3), SamplingOptions(0.7, top_p=0.5)):
        numbers = (np.arange(2000) + 0.5) / 2000
        drawn = np.array([compiled(logits, options, number, levels)[0] for number in numbers])
        assert abs((drawn == 7).mean() - chance) < 2e-3
        every = replace(options, keep_level=False)
        assert abs(np.mean([compiled(logits, every, number, levels)[0] == 7 for number in numbers]) - chance) > 2e-3
