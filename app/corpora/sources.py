"""What names the clips of a corpus: one registry of kinds, told apart by name.

A kind is one entry of `KINDS`, and its reader a function from a path to clips.
"""

import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.corpora.archives import is_audio, read_compressed, read_stream, read_tar
from app.corpora.clips import Clip
from app.corpora.manifests import CWD, from_lines, read_csv, read_jsonl, read_scp
from app.errors import UserError

STDIN = Path("-")
TAR_BLOCK, TAR_MAGIC = 512, slice(257, 262)  # POSIX.1-1988, ustar's header
GZIP = b"\x1f\x8b"


def read_folder(folder: Path) -> Iterator[Clip]:
    """The sound files below a folder, in the order of their names; hidden ones are left out.

    Raises OSError for a folder that cannot be read: its clips would be missing, and nobody told.
    """

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if is_audio(name):
                yield Clip.of_file(Path(place) / name)


@dataclass(frozen=True)
class Kind:
    """``countable``: reading it costs little, so that its clips can be counted before they are scored."""

    what: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Iterator[Clip]]
    countable: bool = True


KINDS = (
    Kind("Kaldi's wav.scp", (".scp",), read_scp),
    Kind("a JSON Lines manifest", (".jsonl", ".ndjson", ".json"), read_jsonl),
    Kind("a CSV manifest", (".csv", ".tsv"), read_csv),
    Kind("a tar", (".tar",), read_tar),
    Kind("a compressed tar", (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), read_compressed, countable=False),
)
FOLDER = Kind("a folder", (), read_folder)
FILE = Kind("a sound file", (), lambda path: iter([Clip.of_file(path)]))


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were looked at."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what callers pass is one
        got = self._head[: len(buffer)] or self._rest.read1(len(buffer))
        self._head = self._head[len(got) :]
        buffer[: len(got)] = got
        return len(got)


def read_stdin(_: Path) -> Iterator[Clip]:
    """A tar, by its bytes; else paths or objects of JSON, one a line."""
    stdin: Any = sys.stdin.buffer  # a BufferedReader, unless a test has put another in its place
    head = stdin.read1(TAR_BLOCK) if isinstance(stdin, io.BufferedReader) else stdin.read(TAR_BLOCK)
    whole = io.BufferedReader(_Rejoined(head, stdin))
    if head[TAR_MAGIC] == b"ustar" or head.startswith(GZIP):
        yield from read_stream(whole, "stdin")
    else:
        yield from from_lines(io.TextIOWrapper(whole, "utf-8-sig", "backslashreplace"), CWD, "stdin", bare=True)


PIPE = Kind("standard input", (), read_stdin, countable=False)


def kind_of(path: Path) -> Kind:
    """What a path is, by its name, and by whether it is a folder."""
    if path == STDIN:
        return PIPE
    if path.is_dir():
        return FOLDER
    name = path.name.lower()
    return next((kind for kind in KINDS if name.endswith(kind.suffixes)), FILE)


def _is_pattern(path: Path) -> bool:
    return glob.has_magic(str(path)) and not path.exists()


def is_corpus(paths: Iterable[Path]) -> bool:
    """Whether more is named than sound files."""
    return any(_is_pattern(path) or kind_of(path) is not FILE for path in paths)


def places(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths, with what patterns stand for in their place. Raises UserError for what does not exist."""
    for path in paths:
        if _is_pattern(path):
            found = sorted(map(Path, glob.iglob(str(path), recursive=True)))
            if "**" in path.parts:  # a folder comes beside what is in it
                found = [one for one in found if not one.is_dir()] or found
            if not found:
                raise UserError(f"{path}: no file is named like that")
            yield from found
        elif path != STDIN and not path.exists():
            raise UserError(f"{path} does not exist")
        else:
            yield path


def clips_of(paths: Sequence[Path]) -> Iterator[Clip]:
    """All clips, in their order. Raises UserError."""
    for path in paths:
        yield from kind_of(path).read(path)


def count_of(paths: Sequence[Path]) -> int | None:
    """How many clips there are; None where only reading all of them would tell. Raises UserError."""
    kinds = [(kind_of(path), path) for path in paths]
    if not all(kind.countable for kind, _ in kinds):
        return None
    return sum(sum(1 for _ in kind.read(path)) for kind, path in kinds)
