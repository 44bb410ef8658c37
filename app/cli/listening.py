"""The port that a server listens on: taken before the weights are read, so that one in use is told at once."""

import errno
import logging
import os
import socket

from app.cli.options import console
from app.errors import UserError
from app.settings import Settings

START_FAILED = 3  # uvicorn's own exit code for it
log = logging.getLogger("whispergpt")


class PortError(UserError):
    """The port cannot be had."""

    exit_code = START_FAILED


def bound(host: str, port: int) -> list[socket.socket]:
    """The port, on every address of the host; nobody is heard there yet. Raises OSError when it is taken.

    Nobody else gets it from now on: two sockets that want to share a port (SO_REUSEADDR) can until one of them listens.
    """
    found: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            one = socket.socket(family, kind, protocol)
            found.append(one)
            if os.name == "posix":  # a port is free though connections of the last server still fade away
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
            one.bind(address)
            if os.name == "posix":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)
    except OSError:
        for one in found:
            one.close()
        raise
    return found


def listening(settings: Settings) -> list[socket.socket]:
    """The port of the settings, as `bound` gives it. Raises PortError."""
    try:
        return bound(settings.host, settings.port)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise PortError(
            f"port {settings.port} on {settings.host} {why}; choose another with --port or --host"
        ) from error


def page_address(settings: Settings) -> str:
    """Where a browser on this machine finds the page."""
    anywhere = settings.host in ("0.0.0.0", "::", "")  # compared, not bound
    host = "localhost" if anywhere else f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/"


def tell_page(settings: Settings) -> None:
    """Where the page will be, for whoever has started the server."""
    if settings.port:  # else it is not known yet
        page = f"the page, as soon as the server is ready: {page_address(settings)}"
        if settings.log_format == "json":
            log.info(page)
        else:
            console.print(page, markup=False, highlight=False, soft_wrap=True)
