"""Products: right, and the same for every row, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.compiled.micro import TILE, add_product, is_half, pack


def matrices(inputs: int, outputs: int, rows: int, half: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(inputs * 7 + outputs * 3 + rows)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    if half:
        weight = weight.astype(np.float16).astype(np.float32)
    return weight, rng.standard_normal((rows, inputs)).astype(np.float32)


@pytest.mark.parametrize("half", [True, False])
@given(inputs=st.integers(1, 70), outputs=st.integers(1, 200), rows=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_product(half: bool, inputs: int, outputs: int, rows: int) -> None:
    weight, x = matrices(inputs, outputs, rows, half)
    assert is_half(weight) == half
    packed = pack(weight, half)
    assert packed.dtype == (np.uint16 if half else np.float32)
    start = np.random.default_rng(1).standard_normal((rows + 1, packed.shape[0] * TILE)).astype(np.float32)
    y = start.copy()
    add_product(x, packed, y, rows)
    expected = start[:rows, :outputs].astype(np.float64) + x.astype(np.float64) @ weight.T.astype(np.float64)
    np.testing.assert_allclose(y[:rows, :outputs], expected, rtol=1e-5, atol=1e-5 * inputs**0.5)
    np.testing.assert_array_equal(y[rows], start[rows])  # the row beyond is not touched
    np.testing.assert_array_equal(y[:rows, outputs:], start[:rows, outputs:])  # nor what pads a tile


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("rows", range(1, 14))
def test_a_row_is_the_same_in_any_company(half: bool, rows: int) -> None:
    weight, x = matrices(96, 192, rows, half)
    packed = pack(weight, half)
    together = np.zeros((rows, 192), np.float32)
    add_product(x, packed, together, rows)
    for row in range(rows):
        alone = np.zeros((1, 192), np.float32)
        add_product(x[row : row + 1].copy(), packed, alone, 1)
        np.testing.assert_array_equal(alone[0], together[row])


def test_nan_stays_in_its_row() -> None:
    weight, x = matrices(64, 64, 5, True)
    x[2] = np.nan
    y = np.zeros((5, 64), np.float32)
    add_product(x, pack(weight, True), y, 5)
    assert np.isnan(y[2]).all()
    assert np.isfinite(y[[0, 1, 3, 4]]).all()


def test_what_is_no_half() -> None:
    assert not is_half(np.array([[1 / 3]], np.float32))
    assert not is_half(np.array([[1e6]], np.float32))  # beyond float16: infinite there
    assert is_half(np.array([[0.5, -65504.0, 0.0]], np.float32))
