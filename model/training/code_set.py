"""Codes of a corpus under a frozen tokeniser, made once: what training a decoder alone reads instead of encoding.

Whole clips are encoded without augmentation, so that a crop's codes have the history that they have when served.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from model.checkpoint import tokeniser_sha256
from model.codec.codec import Codec
from model.codec.streaming import StreamingEncoder
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ
from model.files import put_json
from model.training.corpus import Clip, Corpus, Split

BATCH_SECONDS = 60.0  # of audio encoded together
CHUNK_SECONDS = 8.0  # of audio in one pass of the encoder: more does not fit a processor's cache
LONGEST_SECONDS = 60.0  # of a clip; the rest of a longer one is left out


@dataclass(frozen=True)
class CodedClip:
    """A clip whose first ``frames`` frames stand in the rows from ``start`` on."""

    clip: Clip
    start: int
    frames: int


def chosen_clips(corpus: Corpus, hours: dict[str, float]) -> list[Clip]:
    """All validation clips, and of each kind ``hours`` of training clips in the order of a hash of their names."""
    chosen = list(corpus.split("valid"))
    for kind, limit in hours.items():
        seconds = 0.0
        for clip in sorted(
            corpus.split("train", kind), key=lambda c: hashlib.sha256(Path(c.path).name.encode()).digest()
        ):
            if seconds >= limit * 3600:
                break
            chosen.append(clip)
            seconds += min(clip.length / SAMPLE_RATE_HZ, LONGEST_SECONDS)
    return chosen


def _batches(clips: list[Clip]) -> Iterator[list[tuple[Clip, int]]]:
    """Clips with their frames, of like length, so that a batch holds little padding."""
    limit = round(LONGEST_SECONDS * FRAME_RATE_HZ)
    batch: list[tuple[Clip, int]] = []
    for clip in sorted(clips, key=lambda clip: clip.length):
        frames = min(clip.length // HOP_SAMPLES, limit)
        if batch and frames * (len(batch) + 1) > BATCH_SECONDS * FRAME_RATE_HZ:
            yield batch
            batch = []
        batch.append((clip, frames))
    if batch:
        yield batch


class CodeSet:
    """Codes (F, K) int16 of some clips of a corpus."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        """Opens what `build_codes` wrote. Raises FileNotFoundError when it is not complete."""
        index = json.loads((folder / "index.json").read_text())
        self.folder, self.corpus = folder, corpus
        self.clips = [CodedClip(corpus.clips[at], start, frames) for at, start, frames in index["clips"]]
        self.codes: npt.NDArray[np.int16] = np.memmap(folder / "codes.i16", dtype=np.int16, mode="r").reshape(
            -1, index["codebooks"]
        )
        valid = {clip.path for clip in corpus.split("valid")}
        self._valid = {coded.clip.path for coded in self.clips} & valid

    def split(self, split: Split, kind: str | None = None) -> list[CodedClip]:
        """The coded clips of a split, all or of one kind."""
        wanted = [c for c in self.clips if (c.clip.path in self._valid) == (split == "valid")]
        return [c for c in wanted if kind is None or c.clip.kind == kind]

    def read(self, coded: CodedClip, start: int, frames: int) -> npt.NDArray[np.int16]:
        """Codes (frames, K) from frame ``start`` on; fewer at the end of the clip."""
        stop = min(start + frames, coded.frames)
        return self.codes[coded.start + start : coded.start + stop]


@torch.inference_mode()
def build_codes(corpus: Corpus, codec: Codec, hours: dict[str, float], out: Path, device: str = "cpu") -> CodeSet:
    """Encode the validation clips and ``hours`` of training clips of each kind into ``out``, once."""
    made_from = {"corpus": corpus.folder.name, "tokeniser": tokeniser_sha256(codec), "hours": hours}
    index = out / "index.json"
    if index.exists() and json.loads(index.read_text())["made_from"] == made_from:
        return CodeSet(out, corpus)
    out.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)  # or a kill would leave that of other codes beside these
    place = {id(clip): at for at, clip in enumerate(corpus.clips)}
    encoder = StreamingEncoder(codec.to(device).eval())
    clips: list[tuple[int, int, int]] = []
    total = 0
    with (out / "codes.i16").open("wb") as file:
        for batch in track(list(_batches(chosen_clips(corpus, hours))), description="encoding"):
            longest = max(frames for _, frames in batch)
            padded = np.zeros((len(batch), longest * HOP_SAMPLES), dtype=np.float32)
            for row, (clip, frames) in enumerate(batch):
                padded[row, : frames * HOP_SAMPLES] = corpus.read(clip, 0, frames * HOP_SAMPLES)
            samples = torch.from_numpy(padded).to(device)
            state = encoder.start(len(batch))
            chunk = max(round(CHUNK_SECONDS * FRAME_RATE_HZ / len(batch)), 1) * HOP_SAMPLES
            parts = []
            for start in range(0, samples.shape[1], chunk):
                part, state = encoder.step(samples[:, start : start + chunk], state)
                parts.append(part)
            codes = torch.cat(parts, -1).cpu().numpy().astype(np.int16)  # (B, K, T)
            for row, (clip, frames) in enumerate(batch):
                file.write(np.ascontiguousarray(codes[row, :, :frames].T).tobytes())
                clips.append((place[id(clip)], total, frames))
                total += frames
    put_json(index, {"made_from": made_from, "codebooks": codec.config.codebooks, "clips": clips})
    return CodeSet(out, corpus)
