"""What the tests of commands share."""

import logging
from collections.abc import Iterator

import pytest

LOGGERS = ("", "whispergpt", "model", "uvicorn", "uvicorn.error")  # what `serve` sets up


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """`serve` sends all logs to standard error, which here is the runner's, and closed when the command has ended."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level, logger.handlers[:], logger.filters[:]) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, level, handlers, filters in before:
        logger.setLevel(level)
        logger.handlers[:], logger.filters[:] = handlers, filters
