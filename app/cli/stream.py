"""`whisper-gpt continue --stream`: a file that grows while the audio is made, or bare PCM on standard output."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import typer

from app.audio.encode import wav_head
from app.audio.formats import STREAM_SUFFIXES, StreamFormat
from app.errors import UserError

STDOUT = Path("-")


def stream_format(out: Path) -> StreamFormat:
    """The format of a stream to ``out``. Raises UserError when it has none."""
    if out != STDOUT and out.suffix.lower() not in STREAM_SUFFIXES:
        raise UserError(f"{out}: a stream's name must end in {', '.join(STREAM_SUFFIXES)}, or be - (bare PCM)")
    return "pcm" if out == STDOUT else STREAM_SUFFIXES[out.suffix.lower()]


def write_stream(content: Iterator[bytes], out: Path) -> None:
    """Writes each part as it comes. Raises what ``content`` raises, and UserError for what the file system refuses.

    A WAV gets its sizes at its end, also when that comes early (Ctrl-C, a server that breaks off): what was written
    until then has been heard, and stays a file that every player opens.
    """
    with closing(part for part in content) as parts:  # whatever ends the writing ends the making
        if out == STDOUT:
            _write_stdout(parts)
            return
        first = next(parts)  # what can be refused is refused by now, and no empty file is left behind
        try:
            _write_growing(first, parts, out)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror}") from error


def _write_stdout(content: Iterator[bytes]) -> None:
    try:
        for part in content:
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # the player was closed; Python must not flush the rest into the same pipe at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def _write_growing(first: bytes, content: Iterator[bytes], out: Path) -> None:
    with out.open("wb", buffering=0) as file:
        try:
            file.write(first)
            for part in content:
                file.write(part)
        finally:
            if stream_format(out) == "wav":
                with suppress(OSError):  # a pipe has no beginning to go back to, and a full disk no room
                    head = wav_head(file.tell() - len(wav_head(None)))
                    file.seek(0)
                    file.write(head)
