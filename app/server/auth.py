"""API keys: all routes but the probes and the page, compared in constant time, never kept in the clear."""

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import Request
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from app.errors import InvalidApiKey
from app.settings import NamedKey


def _header(request: HTTPConnection, name: str) -> bytes:
    """As it was sent. Starlette reads headers as Latin-1, which keeps their bytes."""
    return request.headers.get(name, "").encode("latin-1")


def _digest(key: str) -> bytes:
    """Of the key in UTF-8, as clients send it; the environment may hold bytes that are not."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Keys:
    """The digests of the keys that are let in; none = everyone is."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]
        self._names = [key.name for key in keys if isinstance(key, NamedKey)]

    def check(self, request: HTTPConnection, offered: bytes | None = None) -> None:
        """Raises InvalidApiKey unless the request carries a key, as ``Authorization: Bearer`` or ``x-api-key``.

        Its name is the request's ``state.key`` from then on. ``offered``: the key, where it came otherwise.
        """
        if not self._digests:
            return
        scheme, _, token = _header(request, "authorization").partition(b" ")
        given = token.strip(b" \t") if scheme.lower() == b"bearer" else _header(request, "x-api-key")
        given = given if offered is None else offered
        digest = hashlib.sha256(given).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them: no early end
        if not any(matches):
            raise InvalidApiKey("send a valid key as Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"})
        request.state.key = self._names[matches.index(True)]


def require_key(request: Request) -> None:
    """Dependency of every route that is neither a probe nor a file of the page."""
    keys: Keys = request.app.state.keys
    keys.check(request)


def require_admin_key(request: Request) -> None:
    """Dependency of the routes that change what is served; these are there only where such keys are."""
    keys: Keys = request.app.state.admin_keys
    keys.check(request)


def require_key_for_metrics(request: Request) -> None:
    """Dependency of /metrics: open unless the settings say otherwise."""
    if not request.app.state.settings.open_metrics:
        require_key(request)
