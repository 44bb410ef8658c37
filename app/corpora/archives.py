"""Tars of clips, as WebDataset has them: each member whose name ends like audio is a clip; the others are left out."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from app.corpora.clips import Clip, text_of
from app.errors import UserError

AUDIO = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".m4a",
    ".mp4", ".aac", ".webm",
)  # fmt: skip


def is_audio(name: str) -> bool:
    """Whether a file's name says that it holds audio, and not a hidden one."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(AUDIO) and not base.startswith(".")


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if member.isfile() and is_audio(member.name):
            yield member
        archive.members = []  # type: ignore[attr-defined]  # else it keeps all that it has seen, and a shard may hold a million


def read_tar(path: Path) -> Iterator[Clip]:
    """Clips that are read from the tar where they lie. Raises UserError for what is no tar."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in _members(archive):
                name = text_of(member.name)
                yield Clip(f"{text_of(path)}/{name}", name, path, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"{path} is no tar: {error}") from error


def read_stream(file: IO[bytes], name: str) -> Iterator[Clip]:
    """Clips of a tar that can only be read once, compressed or not; each holds its bytes. Raises UserError."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in _members(archive):
                content = archive.extractfile(member)
                assert content is not None, member.name
                own = text_of(member.name)
                yield Clip(f"{name}/{own}", own, content=content.read())
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{name} is no tar, or ends early: {error}") from error


def read_compressed(path: Path) -> Iterator[Clip]:
    """Clips of a compressed tar."""
    with path.open("rb") as file:
        yield from read_stream(file, text_of(path))
