"""`continue` and `score` against a running server (`--url`)."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.errors import UserError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # the server has its own deadline; this one is for a server that hangs


def server_url(url: str) -> str:
    """A server's address as httpx wants it. Without a scheme it is taken for http, as curl does."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _message(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{error['message']} ({answer.status_code} {error['code']}, request {error.get('request_id')})"
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"the server answered {answer.status_code} {answer.reason_phrase}"


def _request(
    client: httpx.Client, url: str, path: str, files: list[Path], fields: dict[str, Any], key: str | None
) -> httpx.Request:
    form = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()
            if value is not None}  # fmt: skip
    headers = {"authorization": f"Bearer {key}"} if key else {}
    parts = [("file", (file.name, file.read_bytes())) for file in files]
    return client.build_request("POST", server_url(url) + path, data=form, files=parts, headers=headers)


@contextmanager
def _answer(
    url: str, path: str, files: list[Path], fields: dict[str, Any], key: str | None
) -> Iterator[httpx.Response]:
    """A response whose head has come, and is a 200. Raises UserError, also for what breaks while it is read."""
    with httpx.Client(timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)) as client:
        answer = None
        try:
            answer = client.send(_request(client, url, path, files, fields, key), stream=True)
            if answer.status_code != 200:
                answer.read()
                raise UserError(_message(answer))
            yield answer
        except httpx.HTTPError as error:
            what = "no answer from" if answer is None else "the answer broke off, from"
            raise UserError(f"{what} {url}: {error}") from error
        except httpx.InvalidURL as error:
            raise UserError(f"{url} is not a URL: {error}") from error
        finally:
            if answer is not None:
                answer.close()


def header_warnings(headers: Mapping[str, str]) -> list[dict[str, str]]:
    """The ``warnings`` of an answer that is bare audio."""
    told = [one.partition(": ") for one in headers.get("x-whispergpt-warning", "").split("; ") if one]
    return [{"code": code, "message": message} for code, _, message in told]


def post(url: str, path: str, files: list[Path], fields: dict[str, Any], key: str | None = None) -> httpx.Response:
    """Posts a form with files; fields that are None are left out. Raises UserError when the answer is not a 200."""
    with _answer(url, path, files, fields, key) as answer:
        answer.read()
        return answer


def post_stream(
    url: str,
    path: str,
    files: list[Path],
    fields: dict[str, Any],
    key: str | None = None,
    begun: Callable[[Mapping[str, str]], None] = lambda headers: None,
) -> Iterator[bytes]:
    """The same, part by part as the answer comes; ``begun`` gets its headers before the first part.

    Raises UserError, also when it ends before its end.
    """
    with _answer(url, path, files, fields, key) as answer:
        begun(answer.headers)
        yield from answer.iter_raw()
