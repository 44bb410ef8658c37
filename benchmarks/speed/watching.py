"""Reading something of a server again and again while it works."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """Looks every ``pause`` seconds, in a thread of its own, while its block runs; ``readings`` holds what it saw."""

    def __init__(self, look: Callable[[], T], pause: float) -> None:
        self._look, self._pause = look, pause
        self.readings: list[T] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            self.readings.append(self._look())

    def __enter__(self) -> "Watch[T]":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
