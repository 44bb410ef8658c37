"""The parser of forms: where a body may end, and what becomes of its files.

These also hold what `_Parser` uses of Starlette's (its callbacks, and the part at hand), which no release need keep:
pyproject.toml bounds the version.
"""

import asyncio
import gc
from typing import Any

import pytest
from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.server.multipart import _parsed, _Parser

END = b"--q--"
BODY = (
    b'--q\r\nContent-Disposition: form-data; name="seconds"\r\n\r\n3\r\n'
    b'--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nfirst\r\n'
    b"--q\r\nContent-Disposition: form-data; name=\"file\"; filename*=UTF-8''b\r\n\r\n--q second\r\n" + END
)
PARTS = [("seconds", "3"), ("file", b"first"), ("file", b"--q second")]


def parse(body: bytes, size: int) -> list[tuple[str, Any]]:
    """The parts of a body that comes in messages of so many bytes."""
    messages = [body[start : start + size] for start in range(0, len(body), size)] or [b""]

    async def receive() -> dict[str, Any]:
        part = messages.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(messages)}

    async def run() -> list[tuple[str, Any]]:
        scope = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=q")]}
        data = await _parsed(Request(scope, receive), 5)
        found = [(name, one.file.read() if isinstance(one, UploadFile) else one) for name, one in data.multi_items()]
        await data.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("rest", [b"", b"\r\n", b"\r\nan epilogue"])
def test_a_whole_form(size: int, rest: bytes) -> None:
    assert parse(BODY + rest, size) == PARTS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1, 1_000])
def test_a_form_that_ends_anywhere_before_its_end_is_refused(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """And its files are closed."""
    parsers: list[_Parser] = []
    real = _Parser.__init__

    def remembered(self: _Parser, *given: Any) -> None:
        real(self, *given)
        parsers.append(self)

    monkeypatch.setattr(_Parser, "__init__", remembered)
    for stop in range(len(BODY)):
        with pytest.raises(MultiPartException):
            parse(BODY[:stop], size)
    assert max(len(parser.files) for parser in parsers) == 2
    assert all(file.file.closed for parser in parsers for file in parser.files)
    parsers.clear()
    gc.collect()


def test_starlettes_own_parser_takes_half_a_file() -> None:
    """What `_Parser` is there for: when this fails, Starlette finds the end itself, and ours can go."""

    async def run() -> list[tuple[str, Any]]:

        async def stream() -> Any:
            yield BODY[: BODY.index(b"first") + 2]

        parser = MultiPartParser(Headers({"content-type": "multipart/form-data; boundary=q"}), stream())
        data = await parser.parse()
        for file in parser._files_to_close_on_error:
            file.close()
        return data.multi_items()

    assert asyncio.run(run()) == [("seconds", "3")]
