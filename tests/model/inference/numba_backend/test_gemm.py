"""Products: right, and the same for every row, to the bit."""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.inference.numba_backend.gemm import TILE, WIDENS_HALVES, add_product, is_half, pack


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


def digest(half: bool) -> str:
    """Of products of 1 to 4 rows."""
    found = hashlib.sha256()
    for rows in range(1, 5):
        weight, x = matrices(96, 192, rows, half=True)
        y = np.zeros((rows, 192), np.float32)
        add_product(x, pack(weight, half), y, rows)
        found.update(y.tobytes())
    return found.hexdigest()


AVX2 = "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+cx8,+f16c,+fma,+fxsr,+lzcnt,+mmx,+movbe,+popcnt,+sse,+sse2,+sse3,"
PROCESSORS = [pytest.param("generic", "", id="generic")]
if platform.machine() == "x86_64":
    PROCESSORS.append(pytest.param("haswell", AVX2 + "+sse4.1,+sse4.2,+ssse3,+xsave", id="avx2"))


@pytest.mark.parametrize(("name", "features"), PROCESSORS)
def test_every_processor_makes_the_same_bits(name: str, features: str, tmp_path: Path) -> None:
    """Fewer or no vector registers; on a `generic` x86 nothing that fuses, and nothing that widens float16."""
    code = "from tests.model.inference.numba_backend.test_gemm import *; print(WIDENS_HALVES, digest(WIDENS_HALVES))"
    environment = dict(os.environ, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    halves, found = run.stdout.split()
    if name == "haswell":
        assert halves == "True"
    assert found == digest(WIDENS_HALVES) == digest(False)
