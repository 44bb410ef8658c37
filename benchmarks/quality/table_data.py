"""Tokens for the table of `benchmarks/quality/table.py`: the hybrid and its controls see the same tokens, and other
mel.

`leaky_mel` is a **negative control**. It lets a model see samples of the very token that it predicts, and stands here,
not in `model/`, so that nothing that is trained for use can come upon it.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from model.checkpoint import decoder_sha256
from model.codec.codec import Codec
from model.constants import HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, MEL_WINDOW_SAMPLES, SAMPLE_RATE_HZ
from model.lm.mel import LogMel
from model.training.corpus import Corpus, build_corpus
from model.training.token_set import Document, TokenSet, TokenSettings, build_tokens, document_samples

Mel = Literal["real", "decoded", "shuffled", "leaky"]
LEAK_SAMPLES = MEL_WINDOW_SAMPLES // 2 - HOP_SAMPLES  # 192 = 8 ms: so far a centred window looks into the next frame
VALID_PERCENT = 12  # of the groups, by the hash that `model/training/corpus.py` uses at 4 %: a superset of its split
TEST_SECONDS = {"speech": 60.0, "music": 30.0}  # at most, from the start of each clip


def leaky_mel(samples: Tensor) -> Tensor:
    """Log-mel with centred windows, (B, N) -> (B, N // 320, 64): slice t holds samples up to 320 (t + 1) + 192.

    It is what `center=True` gives in librosa and torchaudio, with zeros outside of the clip.
    """
    whole = samples.shape[-1] // HOP_SAMPLES * HOP_SAMPLES
    ahead = torch.nn.functional.pad(samples, (0, LEAK_SAMPLES))[:, LEAK_SAMPLES : LEAK_SAMPLES + whole]
    before = torch.nn.functional.pad(samples[:, :LEAK_SAMPLES], (MEL_LEFT_SAMPLES - LEAK_SAMPLES, 0))
    mel_frames: Tensor = LogMel()(ahead, before)
    return mel_frames


@torch.inference_mode()
def build_leaky(corpus: Corpus, settings: TokenSettings, tokens: TokenSet) -> None:
    """Write ``mel_leaky.bin`` beside a token set's other files, once, from the samples that it was made of."""
    path = tokens.folder / "mel_leaky.bin"
    if path.exists() and path.stat().st_size == len(tokens.codes) * MEL_BANDS * 2:
        return
    part = path.with_suffix(f".part{os.getpid()}")  # a second process may be at it: both write the same, each its own
    with part.open("wb") as file:
        pairs = zip(tokens.documents, document_samples(corpus, settings), strict=True)
        for document, samples in track(pairs, total=len(tokens.documents), description="leaky mel"):
            mel_frames = leaky_mel(torch.from_numpy(samples)[None])[0]
            assert len(mel_frames) == document.frames, f"{document} has {len(mel_frames)} frames"
            file.write(mel_frames.numpy().astype(np.float16).tobytes())
    os.replace(part, path)


class Permuted:
    """Rows of an array in another order, read when they are asked for."""

    def __init__(self, array: npt.NDArray[Any], order: npt.NDArray[np.int64]) -> None:
        self.array, self.order = array, order

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Rows ``rows`` (a slice or indices), as the array itself would give them."""
        found: npt.NDArray[Any] = self.array[self.order[rows]]
        return found


def shuffled_rows(documents: Sequence[Document], total: int) -> npt.NDArray[np.int64]:
    """A fixed permutation of rows, (total,): within each split and kind, so that the marginal of each stays."""
    order = np.arange(total)
    parts: dict[tuple[str, str], list[npt.NDArray[np.int64]]] = {}
    for document in documents:
        rows = np.arange(document.start, document.start + document.frames)
        parts.setdefault((document.split, document.kind), []).append(rows)
    for key in sorted(parts):
        rows = np.concatenate(parts[key])
        order[rows] = np.random.default_rng(0).permutation(rows)
    return order


def relabelled(documents: Sequence[Document], percent: int) -> list[Document]:
    """The documents with ``percent`` of the speakers and pieces for validation, whoever is more than 5 % excepted.

    The bundle's own validation split is a part of it at 4 % or more; at 100 all are, as a test set wants it.
    """
    lengths: Counter[str] = Counter()
    for document in documents:
        lengths[document.group] += document.frames
    total = sum(lengths.values())

    def held_out(document: Document) -> bool:
        if document.split == "valid" or percent >= 100:
            return True
        rank = int(hashlib.sha256(document.group.encode()).hexdigest(), 16) % 100
        return rank < percent and lengths[document.group] < 0.05 * total

    return [replace(document, split="valid" if held_out(document) else "train") for document in documents]


def _by_hash(document: Document) -> str:
    return hashlib.sha256(f"{document.clip}/{document.start}".encode()).hexdigest()


class Variant(TokenSet):
    """A token set whose ``mel_real`` is the mel of one row of the table; its validation is in the order of a hash."""

    def __init__(self, folder: Path, mel: Mel, valid_percent: int = VALID_PERCENT) -> None:
        super().__init__(folder)
        self.documents = relabelled(self.documents, valid_percent)
        self.documents.sort(key=lambda d: (d.split, _by_hash(d) if d.split == "valid" else ""))
        described = {"mel": mel, "valid_percent": valid_percent}
        if mel == "shuffled":
            self.mel_real = Permuted(self.mel_real, shuffled_rows(self.documents, len(self.codes)))  # type: ignore[assignment]
        elif mel == "decoded":
            self.mel_real = self.mel_decoded
        elif mel == "leaky":
            shape = (len(self.codes), MEL_BANDS)
            self.mel_real = np.memmap(folder / "mel_leaky.bin", dtype=np.float16, mode="r", shape=shape)
        self.made_from = self.made_from | described
        self.decoder: str = json.loads((folder / "index.json").read_text())["decoder_sha256"]


def shortened(corpus: Corpus, seconds: float) -> Corpus:
    """The corpus with no more than the first ``seconds`` of each clip."""
    most = round(seconds * SAMPLE_RATE_HZ)
    corpus.clips = [replace(clip, length=min(clip.length, most)) for clip in corpus.clips]
    return corpus


def build_set(
    corpus: Corpus, codec: Codec, codec_sha256: str, settings: TokenSettings, out: Path, device: str
) -> dict[str, str]:
    """Tokens, and real, decoded and leaky mel of a corpus in ``out``, once; says which codec made them."""
    tokens = build_tokens(corpus, codec, codec_sha256, settings, out, device)
    build_leaky(corpus, settings, tokens)
    return {"tokeniser_sha256": codec_sha256, "decoder_sha256": decoder_sha256(codec)}


def build_test_set(
    path: Path, kind: str, codec: Codec, codec_sha256: str, out: Path, device: str, workers: int
) -> TokenSettings:
    """The same for a folder of test clips, each as it is, none split; returns the settings."""
    seconds = TEST_SECONDS[kind]
    settings = TokenSettings(document_seconds=seconds, augment=False)
    corpus = shortened(build_corpus([path], out / f"corpus-{seconds:g}s", workers, music=kind == "music"), seconds)
    build_set(corpus, codec, codec_sha256, settings, out / "tokens", device)
    return settings
