"""What `whisper-gpt serve` runs."""

import asyncio
import copy
import logging
import socket
from contextlib import suppress
from typing import Any

import typer
import uvicorn

from app.cli.options import console, pick_device
from app.errors import UserError
from app.main import END_SECONDS, create_app, drain
from app.server.responses import connection
from app.settings import PREFIX, Settings
from model.checkpoint import load_bundle

START_FAILED = 3  # uvicorn's own exit code for it


def no_fault(record: logging.LogRecord) -> bool:
    """Keeps a request that the shutdown cut off out of the log of faults: uvicorn takes its cancelling for one."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def page_address(settings: Settings) -> str:
    """Where a browser on this machine finds the page."""
    anywhere = settings.host in ("0.0.0.0", "::", "")  # compared, not bound
    host = "localhost" if anywhere else f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/"


class Server(uvicorn.Server):
    """uvicorn's server; its application hears of the shutdown when it begins.

    uvicorn itself tells the application when all connections are closed: too late to end what keeps them open.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state: Any = self.config.app
        draining = asyncio.create_task(drain(state.state.engine, state.state.settings.drain_seconds))
        await super().shutdown(sockets)
        draining.cancel()
        await asyncio.wait([draining])


def serve(settings: Settings) -> None:
    """Serve /continue and /score over HTTP."""
    if not (settings.bundle / "config.json").exists():
        raise UserError(f"no bundle in {settings.bundle}; name one with --bundle or {PREFIX}BUNDLE")
    bundle = load_bundle(settings.bundle, pick_device(settings.device), settings.codec)  # before the port is taken
    logs = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["loggers"]["whispergpt"] = {"handlers": ["default"], "level": settings.log_level.upper(), "propagate": False}
    logging.getLogger("uvicorn.error").addFilter(no_fault)
    if settings.port:  # else it is not known yet
        console.print(
            f"the page, as soon as the server is ready: {page_address(settings)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    how = uvicorn.Config(
        create_app(settings, bundle),
        host=settings.host,
        port=settings.port,
        http=connection(settings.send_timeout_seconds),
        log_config=logs,
        log_level=settings.log_level.lower(),
        timeout_graceful_shutdown=round(settings.drain_seconds + END_SECONDS),  # connections that last are cut then
        server_header=False,
    )
    server = Server(how)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise typer.Exit(START_FAILED)
