"""A clip of a corpus: where its audio lies, as plain data that another process can open."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast


def text_of(path: str | Path) -> str:
    """A path as text that can be written: a file name's bytes need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Clip:
    """``id`` finds its row again, and is its own in the corpus; ``filename`` is what a row shows of its place.

    The audio is ``content``, or ``path``: all of it, or ``size_bytes`` from ``start_byte`` on (a member of a tar). Of
    that audio the clip is what lies between ``start_seconds`` and ``end_seconds`` (None: the end). ``fault``: why
    there is no audio, where what named it was wrong.
    """

    id: str
    filename: str
    path: Path | None = None
    start_byte: int = 0
    size_bytes: int | None = None
    content: bytes | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    fault: str | None = None

    @classmethod
    def of_file(cls, path: Path) -> "Clip":
        return cls(text_of(path), text_of(path.name), path)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The audio's bytes. Raises OSError."""
        from app.audio.containers import Part

        if self.content is not None:
            yield io.BytesIO(self.content)
            return
        assert self.path is not None, f"{self.id} has no place"
        with self.path.open("rb") as file:
            if self.size_bytes is None:
                yield file
            else:
                yield cast(BinaryIO, Part(file, self.start_byte, self.start_byte + self.size_bytes))
