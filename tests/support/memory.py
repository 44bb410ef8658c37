"""Bytes that live on, counted while Python's collector of circles does not run."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


class Mallinfo2(ctypes.Structure):
    """What glibc says of its memory, mallinfo2(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def bytes_in_use() -> int:
    """Memory that was asked of the C library and not given back, numpy's arrays and torch's tensors among it.

    Not tracemalloc: CPython 3.11 crashes when it is switched off while another thread allocates without the GIL, as
    compiled code does (gh-128679).
    """
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        pytest.skip("needs glibc 2.33 or later, which tells how much memory is in use")
    ask.restype = Mallinfo2
    told = ask()
    return int(told.uordblks + told.hblkhd)


@contextmanager
def bytes_kept() -> Iterator[Callable[[], int]]:
    """Inside, only references that end free memory; gives a function that tells how much there is more than before."""
    gc.collect()
    gc.disable()
    before = bytes_in_use()
    try:
        yield lambda: bytes_in_use() - before
    finally:
        gc.enable()
