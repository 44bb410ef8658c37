"""Clips that are more than a file: they go to other processes, so they are no part of a test's own module."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from app.corpora.clips import Clip


class Deadly(Clip):
    """Ends the process that opens it, as the kernel does for want of memory."""

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()
