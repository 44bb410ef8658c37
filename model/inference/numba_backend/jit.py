"""How everything in this package is compiled."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit
from numba.core import config

from model.inference.numba_backend.cache import KernelCache

F = TypeVar("F", bound=Callable[..., Any])
# without numpy's error model each division is checked for 0, and no loop that divides becomes vectors
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def edition(paths: Iterable[Path]) -> str:
    """Names the state of some sources."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


_here = Path(__file__).parent
_model = _here.parents[1]
# constants are taken from these
_sources = ("constants.py", "lm/mel.py", "lm/rotary.py", "codec/decoders/harmonic.py",
            "codec/decoders/source_filter.py", "codec/encoders/spectral.py")  # fmt: skip
_constants = [_model / name for name in _sources]
# a debug run (NUMBA_BOUNDSCHECK) neither reads code without checks nor leaves its own to others
EDITION = edition([*_here.glob("*.py"), *_constants]) + ("checked" if config.BOUNDSCHECK else "")


def compiled(function: F) -> F:
    """Machine code for a function, kept on disk from one start to the next (`cache`). It runs without the GIL."""
    # numba looks at the function's own file only, and would keep what it inlined from others before they changed
    function.__qualname__ += f"_{EDITION}"
    made: Any = njit(**OPTIONS)(function)
    made._cache = KernelCache(function)  # what `cache=True` does, with a cache that need not be writable
    kernel: F = made
    return kernel


def inlined(function: F) -> F:
    """A function that becomes part of those that call it."""
    made: F = njit(inline="always", **OPTIONS)(function)
    return made
