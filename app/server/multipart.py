"""Reading a multipart body: counted and timed while it arrives, then checked against a schema."""

import asyncio
import errno
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.message import Message as EmailMessage
from typing import Generic, TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.errors import ClientGone, FileTooLarge, InvalidParameter, MalformedForm, StorageFull, UploadTimeout
from app.server.bodies import Bodies
from app.server.schemas import Form, checked
from app.server.tracing import mark
from app.settings import Settings

F = TypeVar("F", bound=Form)
MAX_FIELDS = 64
FIELD_BYTES = 16_384  # of a text field: a number or a word
# the last: Python found no folder to write to
STORAGE_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOENT}
log = logging.getLogger("whispergpt")
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a bad form is told to its sender, not to the log


@dataclass(frozen=True)
class Upload(Generic[F]):
    """The fields and the files of a request."""

    form: F
    files: list[UploadFile]


def _guard(request: Request, settings: Settings, held: Callable[[int], None]) -> Request:
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
        held(len(message.get("body", b"")))
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
    parser.max_part_size = FIELD_BYTES
    try:
        data = await parser.parse()
    except OSError as error:
        for file in parser._files_to_close_on_error:  # Starlette stops at the first that cannot be written to its end
            with suppress(OSError):
                file.close()
        if error.errno not in STORAGE_FULL:
            raise
        log.error("an upload could not be kept: %s", error.strerror or error)
        request.app.state.metrics.rejected.labels("storage_full").inc()
        raise StorageFull("the server has no room for the upload", headers={"retry-after": "30"}) from None
    whole = {id(value.file) for _, value in data.multi_items() if isinstance(value, UploadFile)}
    lost = [file for file in parser._files_to_close_on_error if id(file) not in whole]
    if lost:
        for file in parser._files_to_close_on_error:
            file.close()
        raise MultiPartException("the form ends in the middle of a file")
    return data


def too_many(max_files: int) -> InvalidParameter:
    most = "send one file" if max_files == 1 else f"send {max_files} files at most"
    return InvalidParameter(f"file: {most}", "file")


@asynccontextmanager
async def read(request: Request, form: type[F], settings: Settings, max_files: int) -> AsyncIterator[Upload[F]]:
    """The request's form; its files are closed, and gone, at the end.

    Raises MalformedForm, InvalidParameter, FileTooLarge, Overloaded, StorageFull, UploadTimeout or
    ClientGone.
    """
    bodies: Bodies = request.app.state.bodies
    with bodies.one() as held:
        async with _read(request, form, settings, max_files, held) as upload:
            yield upload


@asynccontextmanager
async def _read(
    request: Request, form: type[F], settings: Settings, max_files: int, held: Callable[[int], None]
) -> AsyncIterator[Upload[F]]:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise MalformedForm("send multipart/form-data with a part named file")
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").lower()
    if charset not in (b"utf-8", b"us-ascii"):  # Python has codecs that make text which cannot be sent back
        raise MalformedForm("send the form in UTF-8")
    began = time.monotonic()
    try:
        data = await _parsed(_guard(request, settings, held), max_files + 1)  # one more, to look at its name
    except ClientDisconnect:
        raise ClientGone("upload") from None
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many(max_files) from error
        raise MalformedForm(error.message) from error
    finally:
        mark(request, "upload", began)
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
