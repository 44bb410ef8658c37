"""What `whisper-gpt serve` runs: one process. Of several, each is started by `app.cli.supervisor`."""

import asyncio
import logging.config
import os
import signal
import socket
import time
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

import typer
import uvicorn
from fastapi import FastAPI

from app.cli.listening import START_FAILED, listening, tell_page
from app.cli.options import logged, pick_device
from app.main import END_SECONDS, create_app, drain
from app.models.catalog import folders, load_all
from app.server.connection import WAITING, connection, descriptors
from app.server.logs import configuration, take_prints
from app.server.memory import keep_little
from app.server.websockets import WebSocketConnection
from app.settings import Settings, warn_of_unknown_names

TICK_SECONDS = 0.1  # uvicorn's own
log = logging.getLogger("whispergpt")


def no_fault(record: logging.LogRecord) -> bool:
    """Keeps a request that the shutdown cut off out of the log of faults: uvicorn takes its cancelling for one."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def no_query(record: logging.LogRecord) -> bool:
    """Keeps uvicorn's line of a WebSocket out of the log: it tells the query. The middleware has one of its own."""
    return not str(record.msg).startswith('%s - "WebSocket ')


SESSION_MESSAGE_BYTES = 2**20  # 20 s of audio at 24 kHz; what is spoken comes in far smaller pieces


class Server(uvicorn.Server):
    """uvicorn's server; its application hears of the shutdown when it begins, and its clients can see it.

    uvicorn itself tells the application when all connections are closed: too late to end what keeps them open. And it
    closes the listeners first, so that a balancer which asks /readyz hears nothing, and sends on what is lost.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        begin = self.lifespan.startup

        async def begin_and_share() -> None:
            """To listen, and for its connections, a socket needs the option that `bound` has taken back."""
            await begin()
            for one in sockets or []:
                if os.name == "posix":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)

        self.lifespan.startup = begin_and_share
        await super().startup(sockets)
        if self.started and sockets:
            self.tell_started(sockets)

    def tell_started(self, sockets: list[socket.socket]) -> None:
        """Connections are accepted."""
        self._log_started_message(sockets)  # uvicorn leaves that to whoever made the sockets

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state: Any = self.config.app
        settings: Settings = state.state.settings
        end = time.monotonic() + settings.drain_seconds + END_SECONDS
        draining = asyncio.create_task(drain(state.state.engine, settings.drain_seconds))
        if not self.hurried:
            await self._be_seen(settings.drain_grace_seconds)
        # connections that last are cut then
        self.config.timeout_graceful_shutdown = max(round(end - time.monotonic()), 1)
        await super().shutdown(sockets)
        draining.cancel()
        await asyncio.wait([draining])

    @property
    def hurried(self) -> bool:
        """At a terminal nobody balances, and somebody waits."""
        return signal.SIGINT in self._captured_signals

    async def _be_seen(self, seconds: float) -> None:
        """Goes on accepting connections, all of which are told that the server is draining."""
        log.info("draining: /readyz tells so for %g s, then the port is closed", seconds)
        until, ticks = time.monotonic() + seconds, 0
        while time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(TICK_SECONDS)
            await self.on_tick(ticks := ticks + 1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second cuts, whichever they are."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)


def serve(settings: Settings) -> None:
    """Serve /continue and /score over HTTP."""
    if not settings.decoder_processes:
        take_prints()
    logging.config.dictConfig(configuration(settings))
    logging.captureWarnings(settings.log_format == "json")
    with logged(settings.log_format):
        _serve(settings)


def _serve(settings: Settings) -> None:
    folders(settings.bundle)
    warn_of_unknown_names()
    keep_little()
    listeners = listening(settings)  # before the weights are read, which takes a while
    with ExitStack() as held:  # whatever ends this, the port is free again
        for listener in listeners:
            held.enter_context(listener)
        bundles = load_all(settings, pick_device(settings.device))
        tell_page(settings)
        app = create_app(settings, *bundles)
        del bundles  # whoever unloads one means its memory
        server = Server(configured(app, settings))
        with suppress(KeyboardInterrupt):
            server.run(listeners)
    if not server.started:
        raise typer.Exit(START_FAILED)


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to serve the application."""
    for one in (no_fault, no_query):
        logging.getLogger("uvicorn.error").addFilter(one)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connection(settings, app.state.metrics, min(WAITING, descriptors() // 2)),
        log_config=None,
        access_log=False,  # it tells queries; ours are the middleware's
        server_header=False,
        ws=WebSocketConnection,
        ws_max_size=SESSION_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # audio does not shrink, and each session would pay for the try
    )
