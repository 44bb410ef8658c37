"""Decoded audio: its samples alone; and how much is decoded, which says that it stopped, whatever a clock says."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

from app.audio import decode
from app.audio.samples import Samples
from model.constants import SAMPLE_RATE_HZ


def decoded_samples(
    file: BinaryIO, max_seconds: float, start_seconds: float = 0.0, end_seconds: float | None = None
) -> Samples:
    """What `app.audio.decode.decode` makes of a file, without what it tells of it."""
    return decode.decode(file, max_seconds, start_seconds, end_seconds).samples


class Decoded:
    """Counts what this process decodes, from now on until the test ends. Not for decoders in processes of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        original = decode._resampled

        def counted(blocks: Any) -> Iterator[Any]:
            for block in original(blocks):
                self.seconds += len(block) / SAMPLE_RATE_HZ
                yield block

        monkeypatch.setattr(decode, "_resampled", counted)
