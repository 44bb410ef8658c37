"""Waiting for a state, on a machine of any speed: the limit ends a test that hangs, and no law is told by it."""

import time
from collections.abc import Callable

HANG_SECONDS = 600.0  # above `faulthandler_timeout`, which has told by then where all threads stand


def until(true: Callable[[], object], told: Callable[[], str] = lambda: "", pause: float = 0.005) -> None:
    """Returns when it is true; where it stays false, the assertion has what ``told`` says."""
    end = time.monotonic() + HANG_SECONDS
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(pause)
