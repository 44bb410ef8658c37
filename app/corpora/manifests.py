"""Lists of clips: Kaldi's wav.scp, JSON Lines and CSV. A line that names no clip becomes a clip with a fault.

A path is looked for beside the manifest, then from the folder in which the command runs. Fields go by the names that
are in use: those of NeMo (``audio_filepath``, ``offset``, ``duration``), of Hugging Face's audio folders
(``file_name``) and of Common Voice (``path``) among them.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from app.corpora.clips import Clip, text_of
from app.errors import UserError

PATHS = ("audio_filepath", "path", "file_name", "filename", "file", "audio", "wav")
IDS = ("id", "utt_id", "utterance_id", "key")
CWD = Path()


def _found(text: str, folder: Path) -> Path:
    """An absolute path as it stands; else beside the manifest, or from here if only that exists."""
    beside = folder / text
    return Path(text) if not beside.exists() and Path(text).exists() else beside


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    given = fields.get(name)
    if given is None or given == "":
        return None
    seconds = float(given)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} {given!r} is no number of seconds")
    return seconds


def from_fields(fields: object, folder: Path, place: str) -> Clip:
    """The clip that an object of JSON, or a row of a table, names. ``place``: the line, for what names none.

    ``offset`` and ``duration`` choose a part of a file; a duration alone only tells how long the file is.
    """
    if not isinstance(fields, Mapping):
        return Clip(place, place, fault=f"{place} holds no object")
    found = next((fields[name] for name in PATHS if isinstance(fields.get(name), str) and fields[name]), None)
    own = next((str(fields[name]) for name in IDS if fields.get(name) not in (None, "")), None)
    if found is None:
        return Clip(own or place, place, fault=f"{place} names no file: none of the fields {', '.join(PATHS)}")
    start, end, part = 0.0, None, ""
    try:
        offset = _seconds(fields, "offset")
        if offset is not None:
            duration = _seconds(fields, "duration")
            start, end = offset, None if duration is None else offset + duration
            part = f"@{start:g}-" + ("" if end is None else f"{end:g}")
    except (TypeError, ValueError) as error:
        return Clip(own or place, place, fault=f"{place}: {error}")
    if end is not None and end <= start:
        return Clip(own or place, place, fault=f"{place}: a duration of 0 seconds")
    path = _found(found, folder)
    return Clip(own or text_of(found) + part, text_of(path.name), path, start_seconds=start, end_seconds=end)


def from_lines(lines: Iterable[str], folder: Path, name: str, bare: bool = False) -> Iterator[Clip]:
    """JSON Lines; with ``bare`` also paths, one a line: what begins with a brace is an object."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        place = f"{name}:{number}"
        if bare and not text.startswith("{"):
            yield from_fields({"path": line.rstrip("\r\n")}, folder, place)
            continue
        try:
            fields = json.loads(text)
        except ValueError as error:
            yield Clip(place, place, fault=f"{place} is no JSON: {error}")
            continue
        yield from_fields(fields, folder, place)


def _text(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="backslashreplace", newline="")


def read_jsonl(path: Path) -> Iterator[Clip]:
    with _text(path) as file:
        yield from from_lines(file, path.parent, text_of(path.name))


def read_csv(path: Path) -> Iterator[Clip]:
    """A table with a header; tabs part its columns where the name ends in .tsv. Raises UserError."""
    with _text(path) as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        if not set(table.fieldnames or ()) & set(PATHS):
            raise UserError(f"{path}: the header names no column of files: one of {', '.join(PATHS)}")
        try:
            for fields in table:
                yield from_fields(fields, path.parent, f"{text_of(path.name)}:{table.line_num}")
        except csv.Error as error:
            raise UserError(f"{path}, line {table.line_num}: {error}") from error


def read_scp(path: Path) -> Iterator[Clip]:
    """Kaldi's wav.scp: an id and a path a line. Commands (a line that ends in a bar) are not run."""
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            place = f"{text_of(path.name)}:{number}"
            own, _, found = line.strip().partition(" ")
            own, _, found = line.strip().partition("\t") if "\t" in own else (own, "", found.strip())
            if not own:
                continue
            if found.endswith("|"):
                yield Clip(
                    own, place, fault=f"{place} is a command, and commands are not run: write its output to a file"
                )
            elif not found:
                yield Clip(own, place, fault=f"{place} has an id and no path")
            else:
                there = _found(found, path.parent)
                yield Clip(own, text_of(there.name), there)
