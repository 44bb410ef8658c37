"""Files that commands write: looked at before the work, whole or absent after it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from app.errors import UserError
from model import files


def _regular(out: Path) -> bool:
    """Whether a file can take the place of ``out``; a device or a pipe is written to as it is."""
    return not out.exists() or out.is_file()


def check_output(out: Path) -> Path:
    """The path, which can be written. Raises UserError when it cannot: hours of work may come before the writing."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UserError(f"the folder {out.parent} does not exist" if not folder.exists() else f"{folder} is no folder")
    try:
        if out.exists():
            if not os.access(out, os.W_OK):
                raise UserError(f"{out} cannot be written: Permission denied")
        else:  # permissions do not tell all: a file system may be read-only
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return out


def check_folder(folder: Path) -> Path:
    """A folder that exists, or that can be made. Raises UserError when it is no folder or cannot be written to."""
    found = folder.absolute()
    while not found.exists():
        found = found.parent
    if not found.is_dir():
        raise UserError(f"{found} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=found):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """As `model.files.whole_file`; a device or a pipe is written to as it is.

    Raises UserError for what the file system refuses, a full disk for one.
    """
    try:
        with files.whole_file(out) if _regular(out) else nullcontext(out) as part:
            yield part
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
