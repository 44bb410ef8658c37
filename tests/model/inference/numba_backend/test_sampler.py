"""Drawing means what `model.inference.sampling` means."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.inference.numba_backend.sampler import draw
from model.inference.sampling import SamplingOptions, probabilities
from model.inference.sampling import draw as reference

SIZE = 1024


def compiled(logits: np.ndarray, options: SamplingOptions, uniform: float) -> tuple[int, float]:
    expected, work = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    token, logprob = draw(logits, SIZE, options.temperature, options.top_k, options.top_p, uniform, expected, work)
    return int(token), float(logprob)


@given(
    seed=st.integers(0, 10_000), spread=st.floats(0.1, 8), temperature=st.floats(0.05, 2.0),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 1023, 1024, 5000]), top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    ties=st.booleans(),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_what_can_be_drawn(seed: int, spread: float, temperature: float, top_k: int, top_p: float, ties: bool) -> None:
    """The token stands where the number falls in the reference's cdf, but for rounding at an edge."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(SIZE) * spread).astype(np.float32)
    if ties:
        logits = (np.round(logits * 4) / 4).astype(np.float32)
    options = SamplingOptions(temperature, top_k, top_p)
    expected = probabilities(torch.from_numpy(logits)[None], options)[0].numpy()
    cdf = np.concatenate([[0.0], np.cumsum(expected)])
    for uniform in rng.random(5):
        token, logprob = compiled(logits, options, uniform)
        # a set that is cut by top-p may differ by a token that the rounding of a float32 moves over the edge
        slack = 1e-5 + (expected[expected > 0].min() if top_p < 1 else 0.0)
        assert cdf[token] - slack <= uniform <= cdf[token + 1] + slack
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
