"""`continue` and `score` against a running server (`--url`)."""

import json
from pathlib import Path
from typing import Any

import httpx

from app.cli_options import UserError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # the server has its own deadline; this one is for a server that hangs


def _message(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{error['message']} ({answer.status_code} {error['code']}, request {error.get('request_id')})"
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"the server answered {answer.status_code} {answer.reason_phrase}"


def post(url: str, path: str, files: list[Path], fields: dict[str, Any], key: str | None = None) -> httpx.Response:
    """Posts a form with files; fields that are None are left out. Raises UserError when the answer is not a 200."""
    form = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()
            if value is not None}  # fmt: skip
    headers = {"authorization": f"Bearer {key}"} if key else {}
    parts = [("file", (file.name, file.read_bytes())) for file in files]
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    try:
        answer = httpx.post(url.rstrip("/") + path, data=form, files=parts, headers=headers, timeout=timeout)
    except httpx.HTTPError as error:
        raise UserError(f"no answer from {url}: {error}") from error
    except httpx.InvalidURL as error:
        raise UserError(f"{url} is not a URL: {error}") from error
    if answer.status_code != 200:
        raise UserError(_message(answer))
    return answer
