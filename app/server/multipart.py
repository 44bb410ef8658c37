"""Reading a multipart body: counted and timed while it arrives, then parsed into fields and files."""

import errno
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from email.message import Message as EmailMessage

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.errors import ClientGone, FileTooLarge, InvalidParameter, MalformedForm, StorageFull
from app.server.bodies import Body
from app.server.tracing import mark
from app.settings import Settings

MAX_FIELDS = 64
FIELD_BYTES = 16_384  # of a text field: a number or a word
# full; not to be written to, for whatever reason; broken. ENOENT: Python found no folder to write to
STORAGE_FULL = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT
}  # fmt: skip
log = logging.getLogger("whispergpt")
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a bad form is told to its sender, not to the log


def _guard(request: Request, settings: Settings, body: Body) -> Request:
    """The request with a body that is counted while it arrives: a length in a header can lie or be absent."""
    limit = round(settings.max_upload_mib * 2**20)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise FileTooLarge(f"the body may hold {settings.max_upload_mib:g} MiB: send FLAC or Opus", "file")

    async def receive() -> Message:
        with body.told():
            async with body.patience():
                message = await request.receive()
        body.add(len(message.get("body", b"")))
        body.arriving = body.arriving and message.get("more_body", False)
        if body.held > limit:
            raise FileTooLarge(f"the body may hold {settings.max_upload_mib:g} MiB: send FLAC or Opus", "file")
        return message

    return Request(request.scope, receive)


class _Parser(MultiPartParser):
    """Starlette's parser, which also knows its files and whether the form's end has come.

    Starlette's own takes a body that ends anywhere, loses the part that it ends in, and leaves its file open.
    Takes a part for a file, too, whose name is given in the extended form alone (RFC 5987): ``filename*``.
    """

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], max_files: int) -> None:
        super().__init__(headers, stream, max_files=max_files, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES)
        self.files: list[UploadFile] = []  # all that were begun
        self.ended = False  # the end boundary was seen

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
        if part.file is not None:
            self.files.append(part.file)

    def on_end(self) -> None:
        self.ended = True

    def close_files(self) -> None:
        """Closes each, whatever becomes of the others: a file that cannot be written to its end says so again."""
        for file in self.files:
            with suppress(OSError):
                file.file.close()


async def _parsed(request: Request, max_files: int) -> FormData:
    """The parts of a form. Raises MultiPartException, also for a body without its end, and StorageFull."""
    parser = _Parser(request.headers, request.stream(), max_files)
    try:
        data = await parser.parse()
    except OSError as error:
        parser.close_files()  # Starlette stops at the first that cannot be closed
        if error.errno not in STORAGE_FULL:
            raise
        log.error("an upload could not be kept: %s", error.strerror or error)
        request.app.state.metrics.rejected.labels("storage_full").inc()
        raise StorageFull("the server has no room for the upload", headers={"retry-after": "30"}) from None
    if not parser.ended:
        parser.close_files()
        raise MultiPartException("the form ends before its end boundary")
    return data


def too_many(max_files: int) -> InvalidParameter:
    most = "send one file" if max_files == 1 else f"send {max_files} files at most"
    return InvalidParameter(f"file: {most}", "file")


async def parsed(request: Request, settings: Settings, max_files: int, body: Body) -> FormData:
    """The request's fields and files; the caller closes them. ``body`` counts its bytes while they arrive.

    Raises MalformedForm, InvalidParameter, FileTooLarge, Overloaded, StorageFull, UploadTimeout or ClientGone.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise MalformedForm("send multipart/form-data with a part named file")
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").lower()
    if charset not in (b"utf-8", b"us-ascii"):  # Python has codecs that make text which cannot be sent back
        raise MalformedForm("send the form in UTF-8")
    began = time.monotonic()
    try:
        return await _parsed(_guard(request, settings, body), max_files + 1)  # one more, to look at its name
    except ClientDisconnect:
        raise ClientGone("upload") from None
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many(max_files) from error
        raise MalformedForm(error.message) from error
    finally:
        mark(request, "upload", began)
