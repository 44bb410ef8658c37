"""Import `encodec` and `torchaudio` on a torch without CUDA.

torchaudio 2.11's wheel links CUDA libraries in its native extension, so on a CPU-only torch `import torchaudio`
fails, and `import encodec` imports it. Nothing here needs the extension (filter banks are pure Python), so where
torch has no CUDA a stand-in takes its place *before* the first import. With a CUDA build of torch nothing is touched.
"""

import importlib
import sys
from types import ModuleType

import torch


def _no_align(function: object) -> object:
    """torchaudio decorates its forced-alignment functions with this; they stay unavailable."""
    return function


def ensure_importable() -> None:
    """Put the stand-in for `torchaudio._extension` into `sys.modules`, where it is needed. Idempotent."""
    if torch.version.cuda is not None or "torchaudio" in sys.modules:
        return
    name = "torchaudio._extension"
    if name not in sys.modules:
        stand_in = ModuleType(name, "stand-in: this torch has no CUDA, and the extension links it")
        vars(stand_in).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            _check_cuda_version=lambda: None,
            fail_if_no_align=_no_align,
        )
        sys.modules[name] = stand_in


def import_encodec() -> ModuleType:
    """The `encodec` package."""
    ensure_importable()
    return importlib.import_module("encodec")


def import_torchaudio_functional() -> ModuleType:
    """`torchaudio.functional`."""
    ensure_importable()
    return importlib.import_module("torchaudio.functional")
