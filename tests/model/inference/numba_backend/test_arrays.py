"""What is handed to compiled code is what its record says."""

from typing import Annotated, NamedTuple

import numpy as np
import pytest

from model.inference.numba_backend.arrays import Doubles, Floats, Integers, Matrices, Shape, check, zeros


class Inner(NamedTuple):
    weight: Annotated[Matrices, Shape("outputs", "dim", 4)]
    bias: Annotated[Floats, Shape("outputs")]


class Columns(NamedTuple):
    share: Annotated[Doubles, Shape("rows")]
    table: Annotated[Integers, Shape("rows", 3)]


class Outer(NamedTuple):
    enabled: bool
    layers: tuple[Inner, ...]
    norm: Annotated[Floats, Shape("rows", "dim")]


def inner(outputs: int = 2, kind: type[np.generic] = np.float32) -> Inner:
    return Inner(np.zeros((outputs, 3, 4), kind), np.zeros(outputs, np.float32))


def test_zeros_are_what_the_record_says() -> None:
    made = zeros(Columns, rows=5)
    check(made, rows=5)
    assert made.share.dtype == np.float64 and made.table.dtype == np.int64
    assert made.table.shape == (5, 3)
    assert not made.share.any() and not made.table.any()


def test_what_fits_passes() -> None:
    """A name stands for one number within a record: its parts may have others."""
    check(Outer(True, (inner(2), inner(5, np.uint16)), np.zeros((7, 6), np.float32)), rows=7)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (inner()._replace(bias=np.zeros(3, np.float32)), r"Inner.bias is \(3,\).*outputs is 2"),
        (inner()._replace(weight=np.zeros((2, 3, 5), np.float32)), "4 is 4"),
        (inner()._replace(bias=np.zeros(2, np.float64)), "Inner.bias is float64"),
        (inner()._replace(bias=np.zeros((2, 1), np.float32)), "2 dimensions instead of 1"),
        (inner()._replace(bias=np.zeros(4, np.float32)[::2]), "Inner.bias has gaps"),
        (Outer(True, (), np.zeros((6, 6), np.float32)), "rows is 7"),
        (Outer(True, (inner()._replace(bias=np.zeros(9, np.float32)),), np.zeros((7, 6), np.float32)), "Inner.bias"),
        (Outer(np.zeros(1), (), np.zeros((7, 6), np.float32)), "Outer.enabled says neither"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_fails(record: NamedTuple, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(record, rows=7)
