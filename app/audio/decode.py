"""Audio that comes in: any format to mono samples at 24 kHz.

Uploads are hostile until decoded: formats are told by their bytes, decoding goes block by block and stops at the cap
(ten minutes of silence are 90 kB of FLAC), and no number in a header is believed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soxr

from app.audio.character import Character
from app.audio.downmix import Downmix
from app.audio.notices import Damage, Notice
from app.audio.readers import DAMAGED, Block, blocks
from app.audio.samples import Samples
from app.errors import AudioInvalid, AudioTooLong, AudioTooShort, DeadlinePassed
from model.constants import SAMPLE_RATE_HZ

SOURCE_RATE = 384_000  # samples a second, all channels together, that the longest clip may have: 8 at 48 kHz
MAX_PEAK = 100.0  # 40 dB above full scale; beyond it a float file holds no audio, and would make the model overflow


@dataclass(frozen=True)
class DecodedAudio:
    """What an upload holds, and what its answer must tell of it."""

    samples: Samples  # (N,) float32, mono, 24 kHz
    warnings: tuple[Notice, ...]


def _counted(blocks: Iterator[Block], seconds: float) -> Iterator[tuple[int, Samples]]:
    """The blocks without their channels, as long as they cost no more than so many seconds may. Raises AudioTooLong.

    Seconds alone bound no work: an hour of silence in 8 channels at 655 kHz is a small FLAC, and 100 s of a core.
    """
    left = seconds * SOURCE_RATE
    for rate, channels, block in blocks:
        left -= channels * len(block)
        if left < 0:
            most = f"{seconds:g} s of {SOURCE_RATE // 1000} kHz, all channels together"
            raise AudioTooLong(f"the file holds more samples than {most}: send a lower rate or fewer channels", "file")
        yield rate, block


def _resampled(blocks: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Blocks at their own rate -> blocks at 24 kHz. A rate that changes within a file starts a new resampler."""
    rate_before = 0
    resampler: soxr.ResampleStream | None = None
    for rate, block in blocks:
        if not len(block):
            yield block
            continue
        if not np.isfinite(block).all():
            raise AudioInvalid("the file holds samples that are not numbers", "file")
        if np.abs(block).max() > MAX_PEAK:
            raise AudioInvalid(f"the file holds samples above {MAX_PEAK:g}, where full scale is 1", "file")
        if rate != rate_before:
            if resampler is not None:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            same = rate == SAMPLE_RATE_HZ
            resampler = None if same else soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
            rate_before = rate
        yield block if resampler is None else resampler.resample_chunk(np.ascontiguousarray(block))
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def decode_to(
    keep: Callable[[Samples], object],
    file: BinaryIO,
    max_seconds: float,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Notice, ...]:
    """Gives ``keep`` the samples of an upload from ``start_seconds`` to ``end_seconds`` (None: its end), in pieces.

    Returns what its answer must tell: damage that cost a part of them is no error.
    Raises UnsupportedFormat, AudioInvalid (no samples can be had, or not numbers), AudioTooShort (it ends before
    ``start_seconds``) or AudioTooLong (more than ``max_seconds`` are asked for, or more samples than these may have at
    `SOURCE_RATE`); the last without decoding the rest.
    ``stop`` is asked after each block; when it says so, DeadlinePassed is raised.
    """
    file.seek(0)
    first = round(start_seconds * SAMPLE_RATE_HZ)
    last = math.inf if end_seconds is None else round(end_seconds * SAMPLE_RATE_HZ)
    cap = first + round(max_seconds * SAMPLE_RATE_HZ)
    if last != math.inf and last > cap:
        raise AudioTooLong(f"at most {max_seconds:g} s of audio are taken", "prompt_end")
    position, kept, peak = 0, 0, 0.0
    damage, downmix, character = Damage(), Downmix(), Character()
    for block in _resampled(_counted(blocks(file, damage, downmix), cap / SAMPLE_RATE_HZ)):
        if stop():
            raise DeadlinePassed("the file could not be decoded in time")
        begin, position = position, position + len(block)
        piece = block[max(first - begin, 0) : max(int(min(last, position)) - begin, 0)]
        if len(piece):  # not even an empty slice of what is skipped: it would keep the block in memory
            keep(piece)
            character.add(piece)
            kept, peak = kept + len(piece), max(peak, float(np.abs(piece).max()))
        if position >= last:
            break
        if position > cap:
            raise AudioTooLong(f"the audio is longer than the {max_seconds:g} s that are taken", "file")
    if position == 0:
        raise AudioInvalid(DAMAGED if damage.seen else "the file holds no samples", "file")
    if not kept:
        raise AudioTooShort(f"the audio ends at {position / SAMPLE_RATE_HZ:.2f} s", "prompt_start")
    lost = downmix.notices(kept, peak)  # of what is silent, or cancelled, there is no more to tell
    return *damage.notices(), *(lost or character.notices())


def decode(
    file: BinaryIO,
    max_seconds: float,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> DecodedAudio:
    """The same in one piece. Raises what `decode_to` raises."""
    kept: list[Samples] = []
    warnings = decode_to(kept.append, file, max_seconds, start_seconds, end_seconds, stop)
    return DecodedAudio(np.asarray(np.concatenate(kept), dtype=np.float32), warnings)
