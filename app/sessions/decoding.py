"""Opus that a session's client sends: decoded by a process of the session's own (`app.audio.live_decoder`)."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

import numpy as np

from app.audio.incoming import SAMPLE_BYTES_DECODED, too_long
from app.audio.live_decoder import DATA, DROP, END, ORDER, CodedFormat
from app.audio.samples import Samples
from app.errors import AudioInvalid, DecoderLost
from app.metrics import Metrics
from model.constants import SAMPLE_RATE_HZ

MEMORY_BYTES = 1 << 30  # of the process's address space, as of those that decode uploads
START_SECONDS, ORDER_SECONDS = 30.0, 10.0  # for its answers: it decodes a minute in a tenth of a second
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from app.audio.live_decoder import main; main(sys.argv[1], int(sys.argv[2]))"
)


class LiveDecoder:
    """One process, for one stream after another. It is started by the first order, and again after it was lost."""

    def __init__(self, form: CodedFormat, metrics: Metrics, memory_bytes: int = MEMORY_BYTES) -> None:
        self._form, self._metrics, self._memory_bytes = form, metrics, memory_bytes
        self._process: Process | None = None

    async def start(self) -> None:
        """Has it ready for what comes. Raises DecoderLost."""
        await self.order(DROP, 0.0, b"")

    async def order(
        self, kind: bytes, most_seconds: float, data: bytes, seconds: float = ORDER_SECONDS
    ) -> tuple[dict[str, int], Samples]:
        """What it tells of an order, and the samples that it decoded. Raises DecoderLost."""
        try:
            async with asyncio.timeout(START_SECONDS if self._process is None else seconds):
                return await self._answer(kind, most_seconds, data)
        except (OSError, EOFError, ValueError, TimeoutError):  # also words that are no JSON, or promise too much
            await self.close()
            self._metrics.decoders_lost.labels("session").inc()
            raise DecoderLost("the decoder of this audio ended unexpectedly: begin anew") from None
        except asyncio.CancelledError:  # between an order and its answer nothing else may be asked
            await self.close()
            raise

    async def _answer(self, kind: bytes, most_seconds: float, data: bytes) -> tuple[dict[str, int], Samples]:
        if self._process is None:
            arguments = [self._form, str(self._memory_bytes), json.dumps(sys.path)]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CHILD, *arguments,
                stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # a terminal's Ctrl-C is the server's
            )  # fmt: skip
        inward, outward = self._process.stdin, self._process.stdout
        assert inward is not None and outward is not None, "both are pipes"
        inward.write(ORDER.pack(kind, most_seconds, len(data)) + data)
        await inward.drain()
        told = json.loads(await outward.readuntil(b"\n"))
        count = told["samples"]
        if not 0 <= count <= most_seconds * SAMPLE_RATE_HZ + 1:
            raise ValueError(count)
        return told, np.frombuffer(await outward.readexactly(count * SAMPLE_BYTES_DECODED), "<f4")

    async def close(self) -> None:
        """Ends it."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class IncomingOpus:
    """One stream of a `LiveDecoder`; what `app.audio.incoming.IncomingPcm` is for bare samples."""

    def __init__(self, decoder: LiveDecoder) -> None:
        self._decoder = decoder
        self._begun = False
        self.seconds = 0.0

    async def feed(self, data: bytes, most_seconds: float) -> tuple[Samples, AudioInvalid | None]:
        """The next piece, as far as it is whole, and what was wrong with the rest.

        Raises AudioTooLong, upon which none of it is taken, AudioInvalid where nothing can be read from it on, and
        DecoderLost.
        """
        self._begun = True
        told, samples = await self._decoder.order(DATA, most_seconds, data)
        if told.get("too_long"):
            raise too_long(self.seconds + most_seconds)
        self.seconds += len(samples) / SAMPLE_RATE_HZ
        wrong = None
        if told.get("failed"):
            wrong = AudioInvalid("audio: nothing can be read behind this: commit or clear, and begin anew", "audio")
        elif told["damaged"]:
            wrong = AudioInvalid(f"audio: {told['damaged']} packets are damaged, and left out", "audio")
        return samples, wrong

    async def finish(self) -> Samples:
        """What was held back. Raises DecoderLost."""
        if not self._begun:
            return np.zeros(0, np.float32)
        return (await self._decoder.order(END, 1.0, b""))[1]

    async def forget(self) -> None:
        """Nothing of it is wanted. Raises DecoderLost."""
        if self._begun:
            await self._decoder.order(DROP, 0.0, b"")
