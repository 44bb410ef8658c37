"""The client of a server: `Client` and `AsyncClient` here, and the load that `bench` puts on one.

Both are imported when they are asked for: a command's help needs no HTTP client.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.client.aio import AsyncClient as AsyncClient
    from app.client.calls import ApiError as ApiError
    from app.client.sync import Client as Client

__all__ = ["ApiError", "AsyncClient", "Client"]
_MODULES = {"ApiError": "calls", "AsyncClient": "aio", "Client": "sync"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
