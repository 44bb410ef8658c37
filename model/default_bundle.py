"""Where the bundle lies that is taken when none is named."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
# a wheel carries it inside of this package (setup.py); in a checkout it lies beside it
_CARRIED = _HERE / "weights" / "default"
DEFAULT_BUNDLE = _CARRIED if _CARRIED.is_dir() else _HERE.parent / "weights" / "default"
