"""The types of the records that Python hands to compiled code, and the check of what is in them.

Compiled code looks at no bounds, and reads what it is given: an array of another shape is a wrong sound or a crash.
A field says what it holds, ``norm: Annotated[Floats, Shape("layers", "dim")]``, and `check` asserts that it does: once
when a record is made, never in a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

Record = TypeVar("Record", bound=tuple[Any, ...])
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Matrices = npt.NDArray[np.float32] | npt.NDArray[np.uint16]  # tiles of `gemm.pack`, or rings: uint16 holds float16


@dataclass(frozen=True, init=False)
class Shape:
    """Of an array: numbers, and names that stand for the same number wherever they occur in a record."""

    sizes: tuple[int | str, ...]

    def __init__(self, *sizes: int | str) -> None:
        object.__setattr__(self, "sizes", sizes)


@cache
def _fields(record: Any) -> dict[str, tuple[frozenset[np.dtype[Any]], Shape]]:
    """The arrays of a record: the number formats they may have, and their shapes."""
    found = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, shape = get_args(hint)
            kinds = (kind,) if get_origin(kind) is np.ndarray else get_args(kind)
            assert isinstance(shape, Shape) and kinds, f"{record.__name__}.{name}"
            found[name] = frozenset(np.dtype(get_args(get_args(one)[1])[0]) for one in kinds), shape
    return found


def zeros(record: type[Record], **sizes: int) -> Record:
    """A record of zeros: each of its fields an array in the one number format, and of the shape, that it names."""
    made = {}
    for name, (dtypes, shape) in _fields(record).items():
        (dtype,) = dtypes
        made[name] = np.zeros([sizes[size] if isinstance(size, str) else size for size in shape.sizes], dtype)
    return record(**made)


def check(record: Any, **known: int) -> None:
    """Asserts that each array of a record, and of the records in it, has its number format and its shape, without gaps.

    known: numbers that names stand for, in all of these records.
    """
    kind: Any = type(record)
    sizes, fields = dict(known), _fields(kind)
    for name, value in zip(record._fields, record, strict=True):
        where = f"{kind.__name__}.{name}"
        if name in fields:
            dtypes, shape = fields[name]
            check_array(value, where, dtypes, len(shape.sizes))
            for size, expected in zip(value.shape, shape.sizes, strict=True):
                wanted = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
                assert size == wanted, f"{where} is {value.shape}, not {shape.sizes}: {expected} is {wanted}"
        elif isinstance(value, tuple):  # a record, or several
            for one in (value,) if hasattr(value, "_fields") else value:
                check(one, **known)
        else:
            assert not isinstance(value, np.ndarray), f"{where} says neither its number format nor its shape"


def check_array(value: Any, where: str, dtypes: frozenset[np.dtype[Any]], dimensions: int) -> None:
    """Asserts that an array is of one of these formats, has so many dimensions, and no gaps."""
    assert isinstance(value, np.ndarray), f"{where} is no array"
    assert value.dtype in dtypes, f"{where} is {value.dtype}"
    assert value.ndim == dimensions, f"{where} is {value.shape}, of {value.ndim} dimensions instead of {dimensions}"
    assert value.flags.c_contiguous and value.flags.aligned, f"{where} has gaps"


def parts_of_row(record: Any, row: int) -> Iterator[npt.NDArray[Any]]:
    """Views of what belongs to one row, in all arrays of a record and of the records in it: those with "rows" in their
    shape, in the order of the fields.
    """
    kind: Any = type(record)
    fields = _fields(kind)
    for name, value in zip(record._fields, record, strict=True):
        if name not in fields:
            yield from parts_of_row(value, row)
        elif "rows" in fields[name][1].sizes:
            yield value[(slice(None),) * fields[name][1].sizes.index("rows") + (slice(row, row + 1),)]
