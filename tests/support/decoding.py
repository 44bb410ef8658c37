"""How much of the files that come is decoded: what says that decoding stopped, whatever a clock says."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.audio import decode
from model.constants import SAMPLE_RATE_HZ


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
