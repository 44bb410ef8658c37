"""A connection between two requests is not given up when the next one has come, whatever the loop does first."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
import uvicorn

from app.metrics import Metrics
from app.server.connection import connection
from app.settings import Settings
from tests.support.waiting import HANG_SECONDS, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_a_request_that_came_while_the_loop_was_busy_is_answered() -> None:
    """uvloop runs what is due before it reads what has come; a close on unread bytes is a reset."""
    uvloop = pytest.importorskip("uvloop")
    http = connection(Settings(), Metrics())
    config = uvicorn.Config(answer, http=http, port=0, log_config=None, lifespan="off", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    ours, theirs = socket.socketpair()
    busy, sent = threading.Event(), threading.Event()

    def work() -> None:  # of another connection
        loops[0].remove_reader(theirs)
        busy.set()
        sent.wait(HANG_SECONDS)
        time.sleep(1.5)  # the idle connection's time is up when the loop comes to it

    try:
        until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        theirs.setblocking(False)
        with ours, theirs, socket.create_connection(("127.0.0.1", port), timeout=HANG_SECONDS) as client:
            client.sendall(GET)
            assert client.recv(65_536).startswith(b"HTTP/1.1 200")
            loops[0].call_soon_threadsafe(loops[0].add_reader, theirs, work)
            ours.sendall(b"x")
            assert busy.wait(HANG_SECONDS)
            client.sendall(GET)
            sent.set()
            assert client.recv(65_536).startswith(b"HTTP/1.1 200")
    finally:
        sent.set()
        server.should_exit = True
        thread.join(HANG_SECONDS)
