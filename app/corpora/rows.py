"""Files that grow by a row a clip, and can be gone on with: one registry of their formats.

A row is the clip's entry in the JSON answer with its ``id`` in front. Each id has one row: what was written counts, and
a row that a killed process left unfinished is cut off. Beside the rows, ``NAME.run.json`` keeps what they were made
with, so that nothing else is added to them.
"""

import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from app.errors import UserError
from app.scores.reports import Result, Scored, clip_name, write_csv, write_jsonl, write_zerospeech

CUT_LINE = re.compile(rb"\S+( [-+.\da-z]*)?")  # of ZeroSpeech's form, wherever it ends
Format = Literal["jsonl", "csv", "parquet", "zerospeech"]
ROW_BEGIN = b'{"id":'
PART_ROWS = 1_000  # of a Parquet file: what a killed process has to score anew at most


class Rows(Protocol):
    """``done``: ids that have their row already; ``failed``: how many of these are errors."""

    done: set[str]
    failed: int

    def write(self, row: Result) -> None:
        """One more. Raises OSError."""
        ...

    def close(self) -> None:
        """What was written is in the file. Raises OSError."""
        ...


class JsonlRows:
    """JSON Lines."""

    def __init__(self, file: IO[bytes], resumed: bool) -> None:
        self.done: set[str] = set()
        self.failed = 0
        self._file = file
        if resumed:
            _cut(file, self._read(file))

    def _read(self, file: IO[bytes]) -> int:
        """Where the last whole line ends."""
        whole = 0
        for line in file:
            if not line.endswith(b"\n") and (line.startswith(ROW_BEGIN) or ROW_BEGIN.startswith(line)):
                break
            try:
                row = json.loads(line)
                self.done.add(row["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file.name} holds a line, after {whole} bytes, that is none of ours") from error
            self.failed += "error" in row
            whole += len(line)
        return whole

    def write(self, row: Result) -> None:
        self._file.write(write_jsonl(Scored("", [row])).encode())
        self._file.flush()

    def close(self) -> None:
        _sync(self._file)


class CsvRows:
    """RFC 4180, with the columns of the server's table behind the id."""

    def __init__(self, file: IO[bytes], resumed: bool) -> None:
        self.done: set[str] = set()
        self.failed = 0
        self._file = file
        self._header = f"id,{_table([])}".encode()
        whole = 0
        if resumed:
            whole = self._read(file)
            _cut(file, whole)
        if not whole:
            file.write(self._header)
            file.flush()

    def _read(self, file: IO[bytes]) -> int:
        """Where the last whole row ends."""
        if not (begin := file.read(len(self._header))).startswith(self._header):
            if self._header.startswith(begin):
                return 0
            raise UserError(f"{file.name} has other columns than ours")
        at = whole = len(self._header)

        def lines() -> Iterator[str]:
            nonlocal at
            for line in file:
                if not line.endswith(b"\n"):
                    return
                at += len(line)
                yield line.decode()

        columns = self._header.decode().rstrip().split(",")
        try:
            for values in csv.reader(lines(), strict=True):
                if len(values) != len(columns):
                    raise UserError(f"{file.name} holds a row, after {whole} bytes, that is none of ours")
                self.done.add(values[0])
                self.failed += bool(values[columns.index("error_message")])
                whole = at
        except csv.Error:  # a row that was cut off within quotes
            pass
        return whole

    def write(self, row: Result) -> None:
        own = io.StringIO()
        csv.writer(own).writerow([row["id"]])
        own_field, rest = own.getvalue().removesuffix("\r\n"), _table([row]).removeprefix(_table([]))
        self._file.write(f"{own_field},{rest}".encode())
        self._file.flush()

    def close(self) -> None:
        _sync(self._file)


def _table(rows: list[Result]) -> str:
    return write_csv(Scored("", rows))


class Names(set[str]):
    """Names of clips, as ZeroSpeech has them; an id is in here when its name is, and no other id has been before."""

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[str, str] = {}

    def __contains__(self, clip_id: object) -> bool:
        """Raises UserError where another id has the name: which of them has the line, the file does not tell."""
        name = clip_name(str(clip_id))
        if not super().__contains__(name):
            return False
        if self._owners.setdefault(name, str(clip_id)) != clip_id:
            raise another_of_the_name(str(clip_id))
        return True


def another_of_the_name(clip_id: str) -> UserError:
    name = clip_name(clip_id)
    return UserError(f"{clip_id}: there is another clip of the name {name}; score each folder by itself")


class ZeroSpeechRows:
    """Lines of a name and a number. A clip that failed has none, so going on tries it again."""

    def __init__(self, file: IO[bytes], resumed: bool) -> None:
        self.done: set[str] = Names()
        self.failed = 0
        self._file = file
        self._names: set[str] = set()
        if resumed:
            _cut(file, self._read(file))

    def _read(self, file: IO[bytes]) -> int:
        """Where the last whole line ends."""
        whole = 0
        for line in file:
            if not line.endswith(b"\n") and CUT_LINE.fullmatch(line):
                break
            try:
                name, number = line.decode().rstrip("\n").split(" ")
                float(number)
            except ValueError as error:
                raise UserError(f"{file.name} holds a line, after {whole} bytes, that is none of ours") from error
            self.done.add(name)
            whole += len(line)
        self._names = set(self.done)
        return whole

    def write(self, row: Result) -> None:
        """Raises UserError where another clip has the name already: the benchmark takes each once."""
        if "error" in row:
            return
        name = clip_name(row["id"])
        if name in self._names:
            raise another_of_the_name(row["id"])
        self._names.add(name)
        self._file.write(write_zerospeech(Scored("", [{**row, "filename": row["id"]}])).encode())
        self._file.flush()

    def close(self) -> None:
        _sync(self._file)


def _cut(file: IO[bytes], whole: int) -> None:
    """Puts the file's end where the last whole row ends."""
    file.seek(whole)
    file.truncate()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class ParquetRows:
    """A folder of Parquet files, as pandas, DuckDB and Spark read one; a file has its end before it has its name."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as parquet

        self._parquet, self._folder = parquet, folder
        self._schema = _schema()
        self._rows: list[Result] = []
        self.done: set[str] = set()
        self.failed = 0
        parts = sorted(folder.glob("part-*.parquet"))
        for part in parts:
            table = parquet.read_table(part, columns=["id", "error"])
            self.done.update(table["id"].to_pylist())
            self.failed += len(table) - table["error"].null_count
        self._next = 1 + int(parts[-1].stem.partition("-")[2]) if parts else 0
        for left in folder.glob(".part-*"):
            left.unlink()

    def write(self, row: Result) -> None:
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        name = f"part-{self._next:06d}.parquet"
        part = self._folder / f".{name}"
        table = pyarrow.Table.from_pylist(self._rows, schema=self._schema)
        with part.open("wb") as file:
            self._parquet.write_table(table, file)
            _sync(file)
        part.replace(self._folder / name)
        self._rows, self._next = [], self._next + 1

    def close(self) -> None:
        if self._rows:
            self._flush()


def _schema() -> Any:
    """Columns by the names of the JSON answer; what a row has not is null."""
    import pyarrow as pa

    real, whole, text = pa.float64(), pa.int64(), pa.string()
    reals, wholes = pa.list_(pa.float32()), pa.list_(pa.int32())
    window = {"start": real, "seconds": real, "tokens": whole, "log_likelihood": real, "nll": real, "perplexity": real,
              "normalised_by": text, "baseline_nll": real, "normalised_nll": real}  # fmt: skip
    scan = {"start": real, "window_seconds": real, "step_seconds": real, "nll": reals, "normalised_by": text,
            "baseline_nll": reals, "normalised_nll": reals}  # fmt: skip
    return pa.schema({
        "id": text, "filename": text, "seconds": real, "tokens": whole, "log_likelihood": real, "nll": real,
        "perplexity": real, "bits_per_second": real, "accuracy": real,
        "window": pa.struct(window), "scan": pa.struct(scan),
        "logprobs": reals, "codes": wholes, "entropy": reals, "rank": wholes,
        "top_codes": pa.list_(wholes), "top_logprobs": pa.list_(reals),
        "warnings": pa.list_(pa.struct({"code": text, "message": text})),
        "error": pa.struct({"code": text, "message": text}),
    })  # fmt: skip


LINES: dict[Format, Callable[[IO[bytes], bool], Rows]] = {
    "jsonl": JsonlRows,
    "csv": CsvRows,
    "zerospeech": ZeroSpeechRows,
}
SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def check_format(name: Format) -> None:
    """Raises UserError where what writes it is not installed."""
    if name == "parquet" and find_spec("pyarrow") is None:
        raise UserError("parquet needs pyarrow: pip install pyarrow")


def _only(file: IO[str], out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{out}: another process writes to it") from error


def _check_same(file: IO[str], out: Path, made_with: dict[str, Any]) -> None:
    """Raises UserError where rows that are there were made with something else."""
    try:
        before = json.loads(file.read() or "{}")
    except ValueError as error:
        raise UserError(f"{file.name} is not what we left there: {error}") from error
    other = [name for name in made_with if name in before and before[name] != made_with[name]]
    if other:
        told = "; ".join(f"{name} was {before[name]} and is now {made_with[name]}" for name in other)
        raise UserError(f"{out} cannot be gone on with: {told}")
    if before == made_with:
        return  # not written anew: a kill in the middle would leave half of it
    file.seek(0)
    file.truncate()
    json.dump(made_with, file, indent=1)
    file.flush()


@contextmanager
def rows_in(name: Format, out: Path, resume: bool, made_with: dict[str, Any]) -> Iterator[Rows]:
    """Rows of a file; of a folder with Parquet. ``made_with``: what has to be the same, as JSON has it.

    Raises UserError: it is there and shall not be gone on with, it cannot be, or another process does.
    """
    if out.exists() and not resume:
        raise UserError(f"{out} exists: --resume goes on with it, or name another file")
    try:
        with ExitStack() as opened:
            record = opened.enter_context(out.with_name(f"{out.name}.run.json").open("a+", encoding="utf-8"))
            _only(record, out)
            if not out.exists():
                record.truncate(0)
            record.seek(0)
            _check_same(record, out, made_with)
            rows: Rows
            if name == "parquet":
                out.mkdir(exist_ok=True)
                rows = ParquetRows(out)
            else:
                rows = LINES[name](opened.enter_context(out.open("r+b" if out.exists() else "w+b")), True)
            try:
                yield rows
            finally:
                rows.close()
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(out)):
            raise  # of a file that was to be scored
        raise UserError(f"{out} cannot be written: {error.strerror}") from error


@contextmanager
def rows_to(name: Format, stream: IO[bytes]) -> Iterator[Rows]:
    """Rows of a stream, to which nothing was written before. Raises UserError: Parquet has no lines."""
    if name == "parquet":
        raise UserError("parquet is a folder of files: name it with --out")
    yield LINES[name](stream, False)
