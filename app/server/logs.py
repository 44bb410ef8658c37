"""Log lines, as text or as JSON: a line a request, and whose it was by the name of its key.

What clients send does not get into a line, but for an id of theirs (`x-request-id`) and their address: no path, no
query and no header, since people put keys in all of these. A key that gets into a line nevertheless is struck out.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Collection
from typing import Any

import uvicorn
from fastapi import Request
from starlette.requests import HTTPConnection

from app.settings import Settings

PROBES = {"/livez", "/readyz", "/health", "/metrics"}  # asked every few seconds: told when they fail
SHORTEST_KEY = 4  # struck out wherever it stands; anything shorter stands in every other word
STRUCK_OUT = "[key]"
log = logging.getLogger("whispergpt.access")
printed = logging.getLogger("whispergpt.libraries")


def note(request: HTTPConnection, **facts: Any) -> None:
    """What the line of a request shall tell of it."""
    request.scope.setdefault("state", {}).setdefault("facts", {}).update(facts)


def add(request: Request, **amounts: float) -> None:
    """The same for what comes in several parts: the line tells the sums."""
    told = request.scope.get("state", {}).get("facts", {})
    note(request, **{name: told.get(name, 0.0) + amount for name, amount in amounts.items()})


def answered(
    state: dict[str, Any], client: str | None, method: str, route: str, status: int, outcome: str, seconds: float
) -> None:
    """The line of a request that has its answer."""
    facts = {
        "request_id": state.get("request_id"), "client": client, "key": state.get("key"), "method": method,
        "route": route, "status": status, "outcome": outcome, "seconds": seconds, **state.get("facts", {}),
    }  # fmt: skip
    level = logging.DEBUG if route in PROBES and outcome == "ok" else logging.INFO
    log.log(level, "%s %s %d %s", method, route, status, outcome, extra={"facts": facts})


def _rounded(value: Any) -> Any:
    """Microseconds are enough."""
    return round(value, 6) if isinstance(value, float) else value


class _Safe(logging.Formatter):
    """Strikes keys out of text."""

    def __init__(self, *args: Any, keys: Collection[str] = (), pid: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._process = {} if pid is None else {"pid": pid}
        self._keys = sorted((key for key in keys if len(key) >= SHORTEST_KEY), key=len, reverse=True)

    def safe(self, text: str) -> str:
        for key in self._keys:
            text = text.replace(key, STRUCK_OUT)
        return text


class TextFormatter(_Safe):
    """For people: uvicorn's form, with what is known of a request behind its line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lines = uvicorn.logging.DefaultFormatter("%(levelprefix)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = self._lines.format(record)
        facts = getattr(record, "facts", {}) | self._process
        shown = {name: value for name, value in facts.items() if value is not None and name not in _IN_MESSAGE}
        words = [
            f"{name}={value:.3f}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
        ]
        return self.safe(" ".join([text, *words]))


_IN_MESSAGE = {"method", "route", "status", "outcome"}


class JsonFormatter(_Safe):
    """For machines: an object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        told = {name: self.safe(value) if isinstance(value, str) else _rounded(value) for name, value in line.items()}
        return json.dumps(told, default=lambda value: self.safe(str(value)))


def configuration(settings: Settings, pid: int | None = None) -> dict[str, Any]:
    """For `logging.config.dictConfig`: all goes to standard error, by one formatter.

    ``pid``: which of several processes it is that logs, for each of its lines to tell.
    """
    level = settings.log_level.upper()
    # uvicorn's own loggers tell the headers of WebSockets when they may tell everything
    quiet = "INFO" if level == "DEBUG" else level
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "lines": {
                "()": JsonFormatter if settings.log_format == "json" else TextFormatter,
                "keys": [key.get_secret_value() for key in (*settings.api_keys, *settings.admin_keys)],
                "pid": pid,
            }
        },
        "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}},
        "loggers": {
            "whispergpt": {"level": level},
            "model": {"level": level},
            "uvicorn": {"level": quiet},
            "uvicorn.error": {"level": quiet},
        },
        "root": {"handlers": ["lines"], "level": "WARNING"},
    }


def take_prints() -> None:
    """What libraries in C print to standard error becomes lines of the log, at level debug.

    libmpg123 and libav tell what they think of a damaged file, by the thousand lines. Python's own errors go where they
    went; so `sys.stderr` is another from now on, and a log that shall not end here has to be set up afterwards.
    """
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    ours, theirs = os.pipe()
    os.dup2(theirs, 2)
    os.close(theirs)

    def read() -> None:
        with os.fdopen(ours, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                printed.debug("%s", line.rstrip())

    threading.Thread(target=read, name="read prints", daemon=True).start()
