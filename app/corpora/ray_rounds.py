"""How a corpus is handed to Ray: in rounds, so that it need not fit into memory. Without Ray or torch."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from app.corpora.clips import Clip
from app.errors import UserError

ROUND_CLIPS = 10_000  # the models are loaded anew for each round
ROUND_BYTES = 256 * 2**20  # of the audio that clips of standard input and compressed tars carry with them


def check_ray() -> None:
    """Raises UserError where it is not installed."""
    if find_spec("ray") is None or find_spec("pandas") is None:
        raise UserError('--ray needs Ray Data: pip install "ray[data]"')


def rounds(clips: Iterable[Clip], most: int = ROUND_CLIPS, most_bytes: int = ROUND_BYTES) -> Iterator[list[Clip]]:
    """The clips in lists of so many at most, and of so many bytes that they carry; a larger clip is a list."""
    some: list[Clip] = []
    held = 0
    for clip in clips:
        own = len(clip.content or b"")
        if some and (len(some) == most or held + own > most_bytes):
            yield some
            some, held = [], 0
        some.append(clip)
        held += own
    if some:
        yield some
