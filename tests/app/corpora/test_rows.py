"""Files of rows: each id once, whatever was cut off, and nothing of another's."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from app.corpora.rows import LINES, Format, rows_in
from app.errors import UserError

MADE_WITH = {"model": "default", "options": {"detail": "tokens"}}
GOOD = {"filename": "a.wav", "seconds": 1.0, "tokens": 75, "log_likelihood": -150.25, "nll": 2.0, "perplexity": 7.5,
        "bits_per_second": 216.4, "accuracy": 0.5}  # fmt: skip
BAD = {"filename": "b.wav", "error": {"code": "audio_invalid", "message": 'it says "no",\r\nand no more'}}
FORMATS: list[Format] = ["jsonl", "csv", "parquet"]


def row(own: str, fields: dict[str, Any] = GOOD) -> dict[str, Any]:
    return {"id": own, **fields}


def read(name: Format, out: Path) -> list[dict[str, Any]]:
    if name == "jsonl":
        return [json.loads(line) for line in out.read_bytes().splitlines()]
    if name == "csv":
        with out.open(newline="") as file:
            return list(csv.DictReader(file, strict=True))
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    rows: list[dict[str, Any]] = parquet.read_table(out).to_pylist()
    return rows


def need(name: Format) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow", reason="pip install pyarrow")


@pytest.mark.parametrize("name", FORMATS)
def test_rows_come_back_and_are_gone_on_with(name: Format, tmp_path: Path) -> None:
    need(name)
    out = tmp_path / f"scores.{name}"
    with rows_in(name, out, False, MADE_WITH) as rows:
        assert not rows.done and not rows.failed
        rows.write(row("one"))
        rows.write(row('two, "quoted"\nand broken', BAD))
    with rows_in(name, out, True, MADE_WITH) as rows:
        assert rows.done == {"one", 'two, "quoted"\nand broken'} and rows.failed == 1
        rows.write(row("three", {**GOOD, "nll": 1 / 3}))
    found = read(name, out)
    assert [one["id"] for one in found] == ["one", 'two, "quoted"\nand broken', "three"]
    assert float(found[2]["nll"]) == 1 / 3
    error = found[1]["error_message"] if name == "csv" else found[1]["error"]["message"]
    assert error == BAD["error"]["message"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_wherever_it_was_cut_off_whole_rows_count_and_only_these(
    name: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every byte: a kill may come between any two."""
    monkeypatch.setattr("os.fsync", lambda number: None)  # a thousand of them take ten seconds
    out = tmp_path / f"scores.{name}"
    with rows_in(name, out, False, MADE_WITH) as rows:
        rows.write(row("a"))
        first = out.stat().st_size
        rows.write(row("b\nb", BAD))
        second = out.stat().st_size
    whole = out.read_bytes()
    assert len(whole) == second
    for end in range(len(whole) + 1):
        out.write_bytes(whole[:end])
        with rows_in(name, out, True, MADE_WITH) as rows:
            assert rows.done == ({"a"} if end >= first else set()) | ({"b\nb"} if end == second else set()), end
            assert rows.failed == (end == second)
            if "a" not in rows.done:
                rows.write(row("a"))
            if "b\nb" not in rows.done:
                rows.write(row("b\nb", BAD))
        assert out.read_bytes() == whole, end


def test_parquet_is_readable_after_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("parquet")
    monkeypatch.setattr("app.corpora.rows.PART_ROWS", 2)
    out = tmp_path / "scores.parquet"
    positions = {"logprobs": [-1.5, -0.5], "codes": [3, 1023], "top_codes": [[1, 2], [3, 4]]}
    with rows_in("parquet", out, False, MADE_WITH) as rows:
        for own in "abc":
            rows.write(row(own, {**GOOD, **positions}))
        assert [one["id"] for one in read("parquet", out)] == ["a", "b"]
        (out / ".part-000001.parquet").write_bytes(b"what a killed process left")
    with rows_in("parquet", out, True, MADE_WITH) as rows:
        assert rows.done == {"a", "b", "c"} and not list(out.glob(".part*"))
        rows.write(row("d", BAD))
    found = read("parquet", out)
    assert [one["id"] for one in found] == ["a", "b", "c", "d"]
    assert found[0]["logprobs"] == [-1.5, -0.5] and found[0]["top_codes"] == [[1, 2], [3, 4]]
    assert found[0]["error"] is None and found[3]["nll"] is None


@pytest.mark.parametrize("name", FORMATS)
def test_what_must_not_be_gone_on_with(name: Format, tmp_path: Path) -> None:
    need(name)
    out = tmp_path / f"scores.{name}"
    with rows_in(name, out, False, MADE_WITH) as rows:
        rows.write(row("a"))
        with pytest.raises(UserError, match="another process writes"), rows_in(name, out, True, MADE_WITH):
            pass
    with pytest.raises(UserError, match="exists: --resume"), rows_in(name, out, False, MADE_WITH):
        pass
    other = {**MADE_WITH, "model": "another"}
    with pytest.raises(UserError, match="model was default and is now another"), rows_in(name, out, True, other):
        pass
    assert len(read(name, out)) == 1


@pytest.mark.parametrize("name", list(LINES))
@pytest.mark.parametrize("content", [b"my own notes\n", b"my own notes", b'{"path": "a.wav"}\n', b"id,name\r\n1,2\r\n"])
def test_a_file_of_somebody_elses_is_left_alone(name: Format, content: bytes, tmp_path: Path) -> None:
    out = tmp_path / f"scores.{name}"
    out.write_bytes(content)
    with pytest.raises(UserError, match=r"none of ours|other columns than ours"), rows_in(name, out, True, MADE_WITH):
        pass
    assert out.read_bytes() == content


def test_a_clip_that_cannot_be_read_is_not_told_as_the_output(tmp_path: Path) -> None:
    gone, out = tmp_path / "shard.tar.gz", tmp_path / "scores.jsonl"
    with pytest.raises(FileNotFoundError, match=r"shard\.tar\.gz"), rows_in("jsonl", out, False, MADE_WITH):
        gone.open("rb")
    nowhere = rows_in("jsonl", tmp_path / "nowhere" / "scores.jsonl", False, MADE_WITH)
    with pytest.raises(UserError, match=r"nowhere/scores\.jsonl cannot be written"), nowhere:
        pass


def test_what_rows_were_made_with_is_written_once(tmp_path: Path) -> None:
    """Written anew at each start, a kill in the middle would leave half of it, and nothing to compare with."""
    out = tmp_path / "scores.jsonl"
    with rows_in("jsonl", out, False, MADE_WITH):
        pass
    record = tmp_path / "scores.jsonl.run.json"
    os.utime(record, ns=(0, 0))
    with rows_in("jsonl", out, True, MADE_WITH):
        pass
    assert record.stat().st_mtime_ns == 0 and json.loads(record.read_text()) == MADE_WITH
