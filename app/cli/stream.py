"""`whisper-gpt continue --stream`: a file that grows while the audio is made, or bare PCM on standard output."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import typer

from app.audio.encode import wav_head
from app.audio.formats import StreamFormat
from app.errors import UserError

STDOUT = Path("-")
SUFFIXES: dict[str, StreamFormat] = {f".{form}": form for form in get_args(StreamFormat)}


def stream_format(out: Path) -> StreamFormat:
    """The format of a stream to ``out``. Raises UserError when it has none."""
    if out != STDOUT and out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: a stream's name must end in {', '.join(SUFFIXES)}, or be - (bare PCM)")
    return "pcm" if out == STDOUT else SUFFIXES[out.suffix.lower()]


def write_stream(content: Iterator[bytes], out: Path) -> None:
    """Writes each part as it comes. A WAV that came to its end gets its sizes. Raises what ``content`` raises."""
    if out == STDOUT:
        try:
            for part in content:
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
        except BrokenPipeError:  # the player was closed; Python must not flush the rest into the same pipe at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        return
    first = next(content)  # what can be refused is refused by now, and no empty file is left behind
    with out.open("wb", buffering=0) as file:
        file.write(first)
        for part in content:
            file.write(part)
        if stream_format(out) == "wav":
            head = wav_head(file.tell() - len(wav_head(None)))
            file.seek(0)
            file.write(head)
