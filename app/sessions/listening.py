"""The audio of a session on its way to a prompt: read while it comes, in chunks of a fixed size."""

import time

import numpy as np

from app.audio.incoming import Incoming
from app.audio.samples import Samples
from app.engine.engine import Engine
from app.engine.requests import Listened, ListenRequest, Model
from app.errors import AudioInvalid
from app.prompts.service import too_short
from model.constants import HOP_SAMPLES
from model.inference.scoring import MIN_FRAMES, TooShortError

SAMPLE_BYTES = np.dtype(np.float32).itemsize
CHUNK_FRAMES = 15  # 0.2 s: what is left to read at a commit takes a fiftieth of a second; smaller ones cost more
# Read when so much more is there: then what is left for the commit is whole frames, and enough of them.
CHUNK_SAMPLES, MARGIN_SAMPLES = CHUNK_FRAMES * HOP_SAMPLES, MIN_FRAMES * HOP_SAMPLES


class Listening:
    """What was appended since the last commit.

    The chunks are counted from its start, whatever pieces the audio comes in: the same samples give the same bits.
    Pieces leave nothing but their samples, so that no number of them, empty ones among them, takes more memory.
    """

    def __init__(
        self, engine: Engine, model: Model | None, incoming: Incoming, most_seconds: float, timeout_seconds: float
    ) -> None:
        self._engine, self._model, self._incoming = engine, model, incoming
        self._most_seconds, self._timeout_seconds = most_seconds, timeout_seconds
        self._all = bytearray()  # (N,) float32 at 24 kHz
        self._begin()

    def _begin(self) -> None:
        """Nothing has been read."""
        self._position = 0  # samples
        self._last: Listened | None = None
        self.tokens = 0
        self.log_likelihood = 0.0

    @property
    def seconds(self) -> float:
        """Of audio that came."""
        return self._incoming.seconds

    @property
    def nll(self) -> float:
        return -self.log_likelihood / max(self.tokens, 1)

    @property
    def samples(self) -> Samples:
        """(N,) at 24 kHz, all that came."""
        return np.frombuffer(self._all, np.float32).copy()  # a view would keep the buffer from growing

    async def feed(self, data: bytes) -> AudioInvalid | None:
        """The next piece; what is returned was wrong with a part of it, which is left out.

        Raises AudioTooLong, upon which it is as if it had not come, AudioInvalid and DecoderLost.
        """
        samples, wrong = await self._incoming.feed(data, self._most_seconds - self.seconds)
        self._take(samples)
        return wrong

    async def finish(self) -> None:
        """No more will come. Raises AudioTooShort and DecoderLost."""
        self._take(await self._incoming.finish())
        if self._last is None and self._unread < MARGIN_SAMPLES:
            raise too_short()

    async def forget(self) -> None:
        """What came is not wanted. Raises DecoderLost."""
        await self._incoming.forget()

    def _take(self, samples: Samples) -> None:
        self._all += np.ascontiguousarray(samples, np.float32).tobytes()

    @property
    def _unread(self) -> int:
        return len(self._all) // SAMPLE_BYTES - self._position

    @property
    def ready(self) -> bool:
        """Is there a chunk to read?"""
        return self._unread >= CHUNK_SAMPLES + MARGIN_SAMPLES

    async def read(self, last: bool = False) -> Listened:
        """Has the next chunk read, or all that is left.

        Raises ServiceError, upon which all is unread: a thread may have the reader still, or have read the chunk.
        """
        size = self._unread // HOP_SAMPLES * HOP_SAMPLES if last else CHUNK_SAMPLES
        now = time.monotonic()
        chunk = np.frombuffer(self._all, np.float32, size, self._position * SAMPLE_BYTES).copy()
        reader = None if self._last is None else self._last.reader
        request = ListenRequest(now, now + self._timeout_seconds, chunk, reader, last, model=self._model)
        try:
            self._last = await self._engine.submit(request)
        except TooShortError as error:
            raise too_short() from error
        except Exception:
            self._begin()
            raise
        self._position += size
        self.tokens += len(self._last.tokens)
        self.log_likelihood += float(self._last.logprobs.sum(dtype=np.float64))
        return self._last
