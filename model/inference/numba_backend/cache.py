"""Machine code on disk, from one start to the next.

Numba takes a cache folder only if it can also write it, and compiles anew at each start where it cannot: in a container
whose file system is read-only, say. Here each folder that can be read is looked into, and new code goes to the first
that can be written. Where there is none, nothing fails. What was not found is told with its reason, for the log.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
    _Cache,
)  # fmt: skip

log = getLogger(__name__)


def _folder(locator: type[Any]) -> type[Any]:
    """Numba's cache in the one folder that the locator stands for, whether or not that can be written."""

    class Located(locator):  # type: ignore[misc]
        @classmethod
        def from_function(cls, function: Any, path: str) -> Any:
            return cls(function, path)

    class Implementation(CompileResultCacheImpl):  # type: ignore[misc]
        _locator_classes = (Located,)

    class Folder(FunctionCache):  # type: ignore[misc]
        _impl_class = Implementation

    return Folder


_PROVIDED = _folder(UserProvidedCacheLocator)  # what NUMBA_CACHE_DIR names
_OTHERS = (_folder(InTreeCacheLocator), _folder(UserWideCacheLocator))  # __pycache__, a folder of the user's


class KernelCache(_Cache):  # type: ignore[misc]
    """Takes the place of numba's cache of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.folders: list[Any]
        if config.CACHE_LOCATOR_CLASSES:  # numba's own switch: whoever sets it knows where the code is
            self.folders = [FunctionCache(function)]
        else:
            self.folders = [kind(function) for kind in ((_PROVIDED,) if config.CACHE_DIR else ()) + _OTHERS]
        self.missed = ""  # why nothing was found when the function was last looked for
        self.saved: Path | None = None  # the folder that took what was compiled last

    @property
    def cache_path(self) -> str:
        path: str = self.folders[0].cache_path
        return path

    @property
    def filename_base(self) -> str:
        """The beginning of the names of the function's files, in any folder."""
        name: str = self.folders[0]._impl.filename_base
        return name

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The function for these types and this processor; None where no folder has it: ``missed`` says why."""
        reasons = []
        for folder in self.folders:
            try:
                found = folder.load_overload(sig, target_context)
            except PermissionError:
                reasons.append("the cache cannot be read")
                continue
            except Exception as error:  # a file that was cut off, for one: it is compiled anew, whatever it is
                reasons.append(f"the cache is damaged ({type(error).__name__})")
                continue
            if found is not None:
                return found
            reasons.append(_why(folder, sig, target_context))
        self.missed = next((reason for reason in reasons if reason != NO_CACHE), NO_CACHE)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Into the first folder that takes it."""
        self.saved = None
        for folder in self.folders:
            try:
                try:
                    folder.save_overload(sig, data)
                except (pickle.UnpicklingError, EOFError):  # the index that was there is damaged
                    folder.flush()
                    folder.save_overload(sig, data)
            except OSError:
                continue
            self.saved = Path(folder.cache_path)
            return

    def enable(self) -> None:
        for folder in self.folders:
            folder.enable()

    def disable(self) -> None:
        for folder in self.folders:
            folder.disable()

    def flush(self) -> None:
        for folder in self.folders:
            folder.flush()


NO_CACHE = "no cache"


def _why(folder: Any, sig: Any, target_context: Any) -> str:
    """Why a folder that could be read does not have the function."""
    file = folder._cache_file
    try:
        with open(file._index_path, "rb") as index:
            version = pickle.load(index)  # noqa: S301 - numba has just read it, by the same means
            if version != file._version:
                return f"the cache is of numba {version}"
            stamp, known = pickle.loads(index.read())  # noqa: S301
    except FileNotFoundError:
        return "the sources have changed" if _of_other_sources(file) else NO_CACHE
    wanted = folder._index_key(sig, target_context.codegen())
    if stamp != file._source_stamp:
        return "the sources have changed"
    if any(key[0] == wanted[0] and key[2] == wanted[2] for key in known):
        return f"the cache is for another processor than {wanted[1][1]}"
    return "the cache is for another number format of the weights"


def _of_other_sources(file: Any) -> bool:
    """Does the folder hold the function as it was before a change of the sources (`jit.EDITION`)?"""
    prefix, python = file._index_name.rsplit("_", 1)[0] + "_", file._index_name.rsplit(".", 2)[1]
    try:
        names = os.listdir(file._cache_path)
        return any(name.startswith(prefix) and name.endswith(f".{python}.nbi") for name in names)
    except OSError:
        return False


@contextmanager
def log_compilation(function: Any, name: str) -> Iterator[None]:
    """Logs, with the reason, when a first call inside compiles the function rather than loads it."""
    begin = time.monotonic()
    yield
    cache = function._cache
    if isinstance(cache, KernelCache) and cache.missed:
        reason, cache.missed = cache.missed, ""  # once, though several threads may have waited for it
        kept = "kept for the next start" if cache.saved else "not kept: no cache folder can be written"
        log.info("the %s was compiled anew, %.0f s: %s (%s)", name, time.monotonic() - begin, reason, kept)
