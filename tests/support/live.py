"""Servers on a free port of this machine: in a thread of the test's own process, or whatever a test starts there."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.support.waiting import until


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, for a process that has to be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def listening(app: Any, **config: Any) -> Iterator[str]:
    """An application behind a real socket; its URL. ``config`` as uvicorn has it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, **({"log_level": "warning"} | config)))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: running.started or not thread.is_alive())
            assert running.started
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(60)
