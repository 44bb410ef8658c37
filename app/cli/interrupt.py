"""Ctrl-C: one line at most and exit code 130, at whatever moment it comes.

While a command works, Ctrl-C is Python's KeyboardInterrupt: progress bars end and unfinished files go. While modules
are imported it must not be: an exception in the middle of a C extension's start comes out as something else, sixty
lines long, and there is nothing to tidy up yet. So the process ends at once then.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from app.errors import UserError

STOPPED = 130  # 128 + SIGINT, what a shell reports of a command that Ctrl-C ended


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process, with none of Python's tidying up."""
    os.write(2, b"stopped\n")
    os._exit(STOPPED)


class Stopped(UserError):
    """Ctrl-C, with a word on how to go on."""


def run(command: Callable[[], object]) -> None:
    """Runs a command that ends with SystemExit. After Ctrl-C, Python's own end is left out.

    It would wait for threads, and may raise the interrupt again that a library held back.
    """
    try:
        command()
    except SystemExit as ended:
        if ended.code == STOPPED:
            sys.stdout.flush()
            os._exit(STOPPED)
        raise


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Ctrl-C goes to ``handler`` within. Where it is ignored (`nohup`), or in another thread, all stays as it is."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
