"""Reading a multipart body: counted and timed while it arrives, then checked against a schema."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message as EmailMessage
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.errors import ClientGone, FileTooLarge, InvalidParameter, MalformedForm, UploadTimeout
from app.server.schemas import Form
from app.settings import Settings

F = TypeVar("F", bound=Form)
MAX_FIELDS = 64
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a bad form is told to its sender, not to the log


@dataclass(frozen=True)
class Upload(Generic[F]):
    """The fields and the files of a request."""

    form: F
    files: list[UploadFile]


def _guard(request: Request, settings: Settings) -> Request:
    """The request with a body that is counted while it arrives: a length in a header can lie or be absent."""
    limit = round(settings.max_upload_mib * 2**20)
    deadline = time.monotonic() + settings.upload_timeout_seconds
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise FileTooLarge(f"the body may hold {settings.max_upload_mib:g} MiB: send FLAC or Opus", "file")
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await request.receive()
        except TimeoutError:
            raise UploadTimeout(f"the body did not arrive within {settings.upload_timeout_seconds:g} s") from None
        seen += len(message.get("body", b""))
        if seen > limit:
            raise FileTooLarge(f"the body may hold {settings.max_upload_mib:g} MiB: send FLAC or Opus", "file")
        return message

    return Request(request.scope, receive)


class _Parser(MultiPartParser):
    """Takes a part for a file, too, whose name is given in the extended form alone (RFC 5987): ``filename*``."""

    def on_headers_finished(self) -> None:
        part, given = self._current_part, self._current_part.content_disposition or b""
        if b"filename*" in given.lower() and b"filename" not in parse_options_header(given)[1]:
            header = EmailMessage()
            header["content-disposition"] = given.decode("latin-1")
            try:
                name = header.get_filename("").encode("utf-8", "replace")
            except ValueError:  # some of Python's codecs decode no text
                name = b""
            part.content_disposition = given + b'; filename="' + re.sub(rb'[\x00-\x1f"\\]', b"_", name) + b'"'
        super().on_headers_finished()


async def _parsed(request: Request, max_files: int) -> FormData:
    """The parts of a form. Raises MultiPartException, also for a body that ends in the middle of a file.

    Starlette's parser takes such a body, loses the file and leaves it open: hence the look at its list of files.
    """
    parser = _Parser(request.headers, request.stream(), max_files=max_files, max_fields=MAX_FIELDS)
    data = await parser.parse()
    whole = {id(value.file) for _, value in data.multi_items() if isinstance(value, UploadFile)}
    lost = [file for file in parser._files_to_close_on_error if id(file) not in whole]
    if lost:
        for file in parser._files_to_close_on_error:
            file.close()
        raise MultiPartException("the form ends in the middle of a file")
    return data


def checked(form: type[F], fields: dict[str, str]) -> F:
    """Text fields -> a schema. Raises InvalidParameter that names the first field at fault."""
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if not place and ": " in message:
            place, message = message.split(": ", 1)
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        raise InvalidParameter(f"{place}: {message}"[:300], place[:64] or None) from error


def too_many(max_files: int) -> InvalidParameter:
    most = "send one file" if max_files == 1 else f"send {max_files} files at most"
    return InvalidParameter(f"file: {most}", "file")


@asynccontextmanager
async def read(request: Request, form: type[F], settings: Settings, max_files: int) -> AsyncIterator[Upload[F]]:
    """The request's form; its files are closed, and gone, at the end.

    Raises MalformedForm, InvalidParameter, FileTooLarge, UploadTimeout or ClientGone.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise MalformedForm("send multipart/form-data with a part named file")
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").lower()
    if charset not in (b"utf-8", b"us-ascii"):  # Python has codecs that make text which cannot be sent back
        raise MalformedForm("send the form in UTF-8")
    try:
        data = await _parsed(_guard(request, settings), max_files + 1)  # one more, to look at its name
    except ClientDisconnect:
        raise ClientGone("upload") from None
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many(max_files) from error
        raise MalformedForm(error.message) from error
    try:
        files: list[UploadFile] = []
        fields: dict[str, str] = {}
        for name, value in data.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise InvalidParameter(f"{name}: files go into the field file"[:300], name[:64])
                files.append(value)
            elif name == "file":
                raise InvalidParameter("file: must be a file part, with a filename", "file")
            elif name in fields:
                raise InvalidParameter(f"{name}: given twice"[:300], name[:64])
            else:
                fields[name] = value
        if not files:
            raise InvalidParameter("file: is missing", "file")
        if len(files) > max_files:
            raise too_many(max_files)
        yield Upload(checked(form, fields), files)
    finally:
        await data.close()
