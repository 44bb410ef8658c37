"""What both clients share: how a call becomes a request, when it is tried again, and what its answer means. No waiting.

Results are the schemas that the server answers with (`app.continuations.schemas`, `app.scores.schemas`).
"""

import base64
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from app.continuations.schemas import ContinuationSummary, Delta
from app.errors import UserError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # the server has its own deadline; this one is for a server that hangs
RETRIES = 2
LONGEST_WAIT_SECONDS = 120.0  # for a try that the server names a time for; later than that, the caller decides
FIRST_PAUSE_SECONDS = 0.5  # before a try that the server names no time for; doubled each time
TRY_AGAIN = {429, 503}  # nothing was done, and the server says when it may be

Audio = str | Path | bytes | BinaryIO
Progress = Callable[[int, int], None]  # bytes sent so far, bytes in all


class ApiError(UserError):
    """The server refused, or failed: what its envelope says. Without an answer, ``status`` is 0."""

    def __init__(
        self,
        message: str,
        status: int = 0,
        code: str = "",
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.request_id = status, code, param, request_id
        self.retry_after_seconds = retry_after_seconds


def server_url(url: str) -> str:
    """A server's address as httpx wants it. Without a scheme it is taken for http, as curl does."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


class Counted(io.BufferedIOBase):
    """A file that tells how much of it has been read."""

    def __init__(self, file: BinaryIO, total: int, told: Progress) -> None:
        self._file, self._total, self._told = file, total, told
        self._sent = 0

    def read(self, size: int | None = -1) -> bytes:
        part = self._file.read(-1 if size is None else size)
        self._sent += len(part)
        if part:
            self._told(min(self._sent, self._total), self._total)
        return part

    def seek(self, offset: int, whence: int = 0) -> int:
        at = self._file.seek(offset, whence)
        self._sent = at if whence == 0 else self._sent
        return at

    def tell(self) -> int:
        return self._file.tell()


@dataclass(frozen=True)
class Call:
    """One request, which can be built again for another try."""

    path: str
    files: tuple[tuple[str, bytes], ...] = ()  # name and content
    fields: Mapping[str, Any] = field(default_factory=dict)  # those that are None are left out
    method: str = "POST"
    told: Progress | None = None  # of the upload

    def request(self, client: "httpx.Client | httpx.AsyncClient") -> httpx.Request:
        parts: list[tuple[str, Any]] = [
            (name, (None, str(value).lower() if isinstance(value, bool) else str(value)))
            for name, value in self.fields.items()
            if value is not None
        ]
        parts += [("file", (name, self._part(content))) for name, content in self.files]
        return client.build_request(self.method, self.path, files=parts or None)

    def _part(self, content: bytes) -> Any:
        if self.told is None:
            return content
        return Counted(io.BytesIO(content), len(content), self.told)


def audio(given: Audio) -> tuple[str, bytes]:
    """A file's name and content. Raises UserError for one that cannot be read."""
    if isinstance(given, bytes):
        return "audio", given
    if isinstance(given, str | Path):
        path = Path(given)
        try:
            return path.name, path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    return Path(str(getattr(given, "name", "audio"))).name, given.read()


def continuing(file: Audio | None, fields: Mapping[str, Any], told: Progress | None = None) -> Call:
    """A call of /continue."""
    return Call("/continue", () if file is None else (audio(file),), fields, told=told)


def scoring(files: Iterable[Audio], fields: Mapping[str, Any], told: Progress | None = None) -> Call:
    """A call of /score."""
    return Call("/score", tuple(audio(file) for file in files), fields, told=told)


def keeping(file: Audio, fields: Mapping[str, Any], told: Progress | None = None) -> Call:
    """A call of /v1/audio/prompts."""
    return Call("/v1/audio/prompts", (audio(file),), fields, told=told)


def error_of(answer: httpx.Response) -> ApiError:
    """What an answer that is no 200 says; its body has been read."""
    wait = answer.headers.get("retry-after", "")
    after = float(wait) if wait.isdecimal() else None
    try:
        told = answer.json()["error"]
        message = f"{told['message']} ({answer.status_code} {told['code']}, request {told.get('request_id')})"
        return ApiError(message, answer.status_code, told["code"], told.get("param"), told.get("request_id"), after)
    except (json.JSONDecodeError, KeyError, TypeError):
        message = f"the server answered {answer.status_code} {answer.reason_phrase}"
        return ApiError(message, answer.status_code, retry_after_seconds=after)


def pause_seconds(tried: int, error: ApiError | httpx.HTTPError, retries: int) -> float | None:
    """How long to wait before the next try; None when there shall be none.

    A server that is busy says when to come back. A connection that could not be made may be by then; one that broke
    off may have cost the server the work already, and is not tried again.
    """
    if tried >= retries:
        return None
    if isinstance(error, ApiError):
        if error.status not in TRY_AGAIN:
            return None
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds if error.retry_after_seconds <= LONGEST_WAIT_SECONDS else None
    elif not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return None
    pause: float = FIRST_PAUSE_SECONDS * 2**tried
    return pause * random.uniform(0.5, 1.5)  # not all clients at once


def broken(url: str, error: Exception, begun: bool) -> ApiError:
    """What a connection that failed is told as."""
    if isinstance(error, httpx.InvalidURL):
        return ApiError(f"{url} is not a URL: {error}")
    return ApiError(f"{'the answer broke off, from' if begun else 'no answer from'} {url}: {error}")


@dataclass(frozen=True)
class AudioPart:
    """The next piece of one choice: ``pcm`` is s16le, 24 kHz, mono, 320 samples for each token."""

    index: int
    pcm: bytes
    tokens: list[int]
    logprobs: list[float]


@dataclass
class Events:
    """Server-sent events from their lines (WHATWG HTML, section 9.2, as far as this server uses it)."""

    _name: str = ""
    _data: str = ""

    def feed(self, line: str) -> AudioPart | ContinuationSummary | None:
        """What is complete with this line. Raises ApiError for `audio.error`."""
        if line.startswith("event: "):
            self._name = line[7:]
        elif line.startswith("data: "):
            self._data = line[6:]
        elif not line and self._name:
            name, data, self._name, self._data = self._name, self._data, "", ""
            return self._event(name, data)
        return None

    @staticmethod
    def _event(name: str, data: str) -> AudioPart | ContinuationSummary | None:
        if name == "audio.delta":
            delta = Delta.model_validate_json(data)
            return AudioPart(delta.index, base64.b64decode(delta.audio), delta.tokens, delta.logprobs)
        if name == "audio.done":
            return ContinuationSummary.model_validate_json(data)
        if name == "audio.error":
            told = json.loads(data)["error"]
            raise ApiError(told["message"], 200, told["code"], told.get("param"), told.get("request_id"))
        return None  # of a newer server


def header_warnings(headers: Mapping[str, str]) -> list[dict[str, str]]:
    """The ``warnings`` of an answer that is bare audio."""
    told = [one.partition(": ") for one in headers.get("x-whispergpt-warning", "").split("; ") if one]
    return [{"code": code, "message": message} for code, _, message in told]


def headers_for(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}
