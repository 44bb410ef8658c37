"""The language model's training set: what a frozen codec makes of a corpus.

For each frame: the codes, the mel frame of the real samples, and the mel frame of the samples that the codec decodes
from the codes (what the closed loop hears). Made once, resumable, read through memory mapping.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
from rich.progress import Progress, track
from torch import Tensor

from model.checkpoint import decoder_sha256
from model.codec.codec import Codec
from model.codec.streaming import StreamingEncoder
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, MAX_CODEBOOKS, MEL_BANDS, SAMPLE_RATE_HZ, VOCABULARY
from model.files import put_json
from model.inference.scoring import MIN_FRAMES
from model.lm.mel import LogMel
from model.training.configs import TokenSettings as TokenSettings
from model.training.configs import before
from model.training.corpus import Clip, Corpus, DataError, Split
from model.training.loop import filled
from model.training.pauses import Pauses, Spans, insert_pauses, shorten_pauses

LEVELS = 8  # of loudness, that a temperature below 1 chooses within (docs/method.md says why 8)
BATCH_SECONDS = 60.0  # of audio in one batch of documents
CHUNK_SECONDS = (
    8.0  # of audio in one pass of the encoder: more does not fit a processor's cache (9 against 52 x real time)
)


@dataclass(frozen=True)
class Document:
    """A run of frames that belong together; ``start`` and ``frames`` count rows of the flat files.

    ``pauses``: first and last (excluded) frame of each pause that was put in, counted from the document's beginning.
    """

    start: int
    frames: int
    kind: str
    group: str
    split: Split
    clip: str
    pauses: Spans = ()

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Document":
        """From what `asdict` and JSON made of it; sets of before 2026-11-26 know of no pauses."""
        return cls(**values | {"pauses": tuple((first, last) for first, last in values.get("pauses", ()))})


@dataclass(frozen=True)
class _Job:
    clip: Clip
    split: Split
    offset: int  # samples into the clip
    length: int
    variant: int

    def rng(self, seed: int) -> np.random.Generator:
        name = f"{seed}/{self.variant}/{self.offset}/{self.clip.group}/{Path(self.clip.path).name}"
        return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))


def _limited(clips: list[Clip], hours: float) -> list[Clip]:
    """Clips in the order of a hash of their names, until ``hours`` are full."""
    chosen, samples = [], 0
    for clip in sorted(clips, key=lambda clip: hashlib.sha256(Path(clip.path).name.encode()).hexdigest()):
        if samples >= hours * 3600 * SAMPLE_RATE_HZ:
            break
        chosen.append(clip)
        samples += clip.length
    return chosen


def _jobs(corpus: Corpus, settings: TokenSettings) -> list[_Job]:
    """The documents to make, sorted by length so that a batch holds little padding."""
    piece = round(settings.document_seconds * SAMPLE_RATE_HZ)
    jobs = []
    splits: tuple[Split, ...] = ("train", "valid")
    for split in splits:
        limits = (("speech", settings.speech_hours), ("music", settings.music_hours))
        for clip in (clip for kind, hours in limits for clip in _limited(corpus.split(split, kind), hours)):
            for variant in range(settings.takes if split == "train" else 1):
                for offset in range(0, clip.length, piece):
                    length = min(piece, clip.length - offset)
                    if length >= SAMPLE_RATE_HZ // 2:
                        jobs.append(_Job(clip, split, offset, length, variant))
    return sorted(jobs, key=lambda job: job.length)


@dataclass(frozen=True)
class _Variant:
    """What chance decides about a document: speed, gain, the quality that its decoded mel is made at, and pauses."""

    speed: float
    gain: float
    codebooks: int
    pauses: Pauses = ()


def _variant(job: _Job, settings: TokenSettings) -> _Variant:
    rng = job.rng(settings.seed)
    speed = gain = 1.0
    if settings.augment and job.split == "train":
        speed = rng.uniform(*settings.speeds) if rng.random() < settings.speed_share else 1.0
        gain = 10 ** (rng.uniform(*settings.gain_db) / 20)
    counts, weights = zip(*settings.served, strict=True)
    codebooks = int(rng.choice(counts, p=weights))
    pauses: list[tuple[int, int, float]] = []
    if settings.pause_every > 0 and job.split == "train":
        left = float(job.length)
        while left > 0:
            more = rng.exponential(max(settings.pause_every - settings.pause_gap, 0.0))
            gap = round((settings.pause_gap + more) * SAMPLE_RATE_HZ)
            length = round(rng.uniform(*settings.pause_seconds) * SAMPLE_RATE_HZ)
            hiss = 10 ** (rng.uniform(*settings.hiss_db) / 20) if rng.random() < settings.hiss_share else 0.0
            pauses.append((gap, length, hiss))
            left -= gap
    return _Variant(speed, gain, codebooks, tuple(pauses))


def _samples(corpus: Corpus, job: _Job, settings: TokenSettings) -> tuple[npt.NDArray[np.float32], Spans]:
    """The samples of a document, and the frames of the pauses that were put in."""
    samples = corpus.read(job.clip, job.offset, job.length)
    if settings.longest_pause > 0 and job.clip.kind == "speech" and job.split == "train":
        samples = shorten_pauses(samples, settings.longest_pause, settings.end_pause, settings.quiet_share)
    if settings.augment and job.split == "train":
        variant = _variant(job, settings)
        if variant.speed != 1.0:
            rates = SAMPLE_RATE_HZ * variant.speed, SAMPLE_RATE_HZ
            samples = np.asarray(soxr.resample(samples, *rates), dtype=np.float32)
        samples = np.clip(samples * np.float32(variant.gain), -1.0, 1.0)
    pauses = _variant(job, settings).pauses
    return insert_pauses(samples, pauses, job.rng(settings.seed + 1)) if pauses else (samples, ())


def document_samples(corpus: Corpus, settings: TokenSettings) -> Iterator[npt.NDArray[np.float32]]:
    """The samples, (N,) each, that the documents of a token set were made of, in the order of its documents."""
    for batch in _batches(_jobs(corpus, settings)):
        for job in batch:
            yield _samples(corpus, job, settings)[0]


class TokenSet:
    """Flat arrays over frames: ``codes`` (F, 8) int16, ``mel_real`` and ``mel_decoded`` (F, 64) float16."""

    FILES = (
        ("codes", np.int16, MAX_CODEBOOKS),
        ("mel_real", np.float16, MEL_BANDS),
        ("mel_decoded", np.float16, MEL_BANDS),
    )

    def __init__(self, folder: Path) -> None:
        """Opens what `build_tokens` wrote. Raises FileNotFoundError when it is not complete."""
        index = json.loads((folder / "index.json").read_text())
        self.folder = folder
        self.made_from: dict[str, Any] = index["made_from"]
        self.documents = [Document.read(document) for document in index["documents"]]
        arrays = {
            name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r").reshape(-1, width)
            for name, dtype, width in self.FILES
        }
        self.codes, self.mel_real, self.mel_decoded = (arrays[name] for name, _, _ in self.FILES)

    def of(self, split: Split, kind: str | None = None) -> list[Document]:
        return [d for d in self.documents if d.split == split and (kind is None or d.kind == kind)]

    def mel_statistics(self, rows: int = 200_000) -> tuple[Tensor, Tensor]:
        """Per-band mean and deviation of the training split's real mel, (64,) each."""
        keep = np.concatenate([np.arange(d.start, d.start + d.frames) for d in self.of("train")])
        picks = np.sort(np.random.default_rng(0).choice(keep, size=min(rows, len(keep)), replace=False))
        mel_frames = torch.from_numpy(self.mel_real[picks].astype(np.float32))
        return mel_frames.mean(0), mel_frames.std(0).clamp_min(0.1)

    def unigram(self, smoothing: float = 1.0) -> Tensor:
        """Log-probabilities of the coarse tokens in the training split, (1024,): the baseline that knows no context."""
        counts = np.full(1024, smoothing)
        for d in self.of("train"):
            counts += np.bincount(self.codes[d.start : d.start + d.frames, 0], minlength=1024)
        return torch.from_numpy(np.log(counts / counts.sum()))

    def levels(self, count: int = LEVELS, rows: int = 1_000_000) -> tuple[int, ...]:
        """Of each coarse token, to which of ``count`` equal shares of them it belongs, by loudness: 0 is the quietest.

        A token's loudness is the mean over the bands of the log-mel frames that it was made of, in the training split;
        that of a token which occurs nowhere is the median of the others.
        """
        picks = np.concatenate([np.arange(d.start, d.start + d.frames) for d in self.of("train")])
        picks = picks[:: max(1, len(picks) // rows)]
        tokens, loudness = self.codes[picks, 0].astype(np.int64), self.mel_real[picks].astype(np.float32).mean(1)
        times = np.bincount(tokens, minlength=VOCABULARY)
        means = np.bincount(tokens, loudness, VOCABULARY) / np.maximum(times, 1)
        means[times == 0] = np.median(means[times > 0])
        ranks = np.argsort(np.argsort(means, kind="stable"), kind="stable")
        return tuple(int(level) for level in ranks * count // VOCABULARY)


def _batches(jobs: list[_Job]) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    for job in jobs:
        if batch and job.length * (len(batch) + 1) > BATCH_SECONDS * SAMPLE_RATE_HZ:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


Arrays = tuple[npt.NDArray[np.int16], npt.NDArray[np.float16], npt.NDArray[np.float16]]


@torch.inference_mode()
def _encode(
    codec: Codec, mel: LogMel, rows: list[npt.NDArray[np.float32]], codebooks: list[int], device: str
) -> list[Arrays]:
    """Each row's codes, real mel and decoded mel. Zeros on the right change nothing: everything here is causal."""
    longest = max(len(row) for row in rows)
    padded = np.zeros((len(rows), -(-longest // HOP_SAMPLES) * HOP_SAMPLES), dtype=np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    samples = torch.from_numpy(padded).to(device)
    encoder = StreamingEncoder(codec)
    state = encoder.start(len(rows))
    chunk = max(round(CHUNK_SECONDS * FRAME_RATE_HZ / len(rows)), MIN_FRAMES) * HOP_SAMPLES
    parts = []
    for start in range(0, samples.shape[1], chunk):
        part, state = encoder.step(samples[:, start : start + chunk], state)
        parts.append(part)
    codes = torch.cat(parts, dim=-1)
    decoded = torch.empty_like(samples)
    for count in set(codebooks):
        chosen = [index for index, own in enumerate(codebooks) if own == count]
        decoded[chosen] = codec.decode(codes[chosen, :count])
    real_mel, decoded_mel = mel(samples), mel(decoded)
    out = []
    for index, row in enumerate(rows):
        frames = len(row) // HOP_SAMPLES
        out.append(
            (
                codes[index, :, :frames].T.cpu().numpy().astype(np.int16),
                real_mel[index, :frames].cpu().numpy().astype(np.float16),
                decoded_mel[index, :frames].cpu().numpy().astype(np.float16),
            )
        )
    return out


def _in_order(
    work: Callable[[list[_Job]], list[tuple[Arrays, Spans]]], batches: list[list[_Job]], total: int, workers: int
) -> Iterator[tuple[list[_Job], list[tuple[Arrays, Spans]]]]:
    """Batches with their results, in order, ``workers`` at a time."""
    with ThreadPoolExecutor(workers) as pool, Progress() as bar:
        task = bar.add_task("encoding", total=total, completed=total - len(batches))
        for start in range(0, len(batches), workers):
            group = batches[start : start + workers]
            for batch, results in zip(group, pool.map(work, group), strict=True):
                yield batch, results
                bar.advance(task)


@torch.inference_mode()
def _redecode(corpus: Corpus, codec: Codec, settings: TokenSettings, tokens: TokenSet, device: str) -> None:
    """Replace the decoded mel of a token set by what ``codec`` makes of its codes; cut off, it begins anew."""
    mel, path = LogMel().to(device), tokens.folder / "mel_decoded.bin"
    part = path.with_suffix(f".part{os.getpid()}")
    jobs = _jobs(corpus, settings)
    assert len(jobs) == len(tokens.documents), f"{len(jobs)} jobs, {len(tokens.documents)} documents"
    where = iter(tokens.documents)
    with part.open("wb") as file:
        for batch in track(list(_batches(jobs)), description="decoding"):
            documents = [next(where) for _ in batch]
            depths = [min(_variant(job, settings).codebooks, codec.config.codebooks) for job in batch]
            made: dict[int, npt.NDArray[np.float16]] = {}
            for count in set(depths):
                chosen = [index for index, own in enumerate(depths) if own == count]
                codes = torch.zeros(len(chosen), count, max(documents[i].frames for i in chosen), dtype=torch.int64)
                for row, index in enumerate(chosen):
                    own = documents[index]
                    kept = tokens.codes[own.start : own.start + own.frames, :count]
                    codes[row, :, : own.frames] = torch.from_numpy(kept.astype(np.int64).T)
                mel_frames = mel(codec.decode(codes.to(device))).cpu().numpy().astype(np.float16)
                made |= {index: mel_frames[row, : documents[index].frames] for row, index in enumerate(chosen)}
            for index in range(len(batch)):
                file.write(made[index].tobytes())
    os.replace(part, path)


def build_tokens(
    corpus: Corpus,
    codec: Codec,
    codec_sha256: str,
    settings: TokenSettings,
    out: Path,
    device: str = "cpu",
    workers: int = 1,
) -> TokenSet:
    """Encode the corpus into ``out``, or go on where a call that was cut off stopped.

    When ``out`` holds the same tokens, but heard by another decoder, only the decoded mel is made anew. Raises
    DataError when it holds other tokens: they may have taken hours.

    ``workers`` batches are encoded at the same time; on a CPU this scales better than threads within one.
    """
    made_from = {"corpus": corpus.folder.name, "codec_sha256": codec_sha256, "settings": asdict(settings)}
    made_from = json.loads(json.dumps(made_from))  # as it is read back: lists for tuples
    heard = {"decoder_sha256": decoder_sha256(codec)}  # no part of `made_from`: a run may go on with a better decoder
    earlier = {"settings": before(TokenSettings)}
    index = out / "index.json"
    if index.exists():
        known = json.loads(index.read_text())
        if filled(known["made_from"], earlier) != made_from:
            raise DataError(f"{out} holds the tokens of another corpus, codec or other settings; choose another folder")
        if known.get("decoder_sha256") != heard["decoder_sha256"]:
            _redecode(corpus, codec.to(device).eval(), settings, TokenSet(out), device)
            put_json(index, known | heard)
        return TokenSet(out)
    out.mkdir(parents=True, exist_ok=True)
    progress = out / "progress.json"
    documents: list[Document] = []
    done = 0
    if (
        progress.exists()
        and filled((kept := json.loads(progress.read_text()))["made_from"], earlier) == made_from | heard
    ):
        documents, done = [Document.read(document) for document in kept["documents"]], kept["batches"]

    def encoded(batch: list[_Job]) -> list[tuple[Arrays, Spans]]:
        made = [_samples(corpus, job, settings) for job in batch]
        codebooks = [min(_variant(job, settings).codebooks, codec.config.codebooks) for job in batch]
        arrays = _encode(codec, mel, [samples for samples, _ in made], codebooks, device)
        return [(own, pauses) for own, (_, pauses) in zip(arrays, made, strict=True)]

    codec.to(device).eval()
    mel = LogMel().to(device)
    total = sum(document.frames for document in documents)
    batches = list(_batches(_jobs(corpus, settings)))
    with ExitStack() as stack:  # whatever ends this, what was written is flushed and closed
        files = {}
        for name, dtype, width in TokenSet.FILES:
            path = out / f"{name}.bin"
            path.touch()
            files[name] = stack.enter_context(path.open("r+b"))
            files[name].truncate(total * width * np.dtype(dtype).itemsize)
            files[name].seek(0, 2)
        for number, (batch, results) in enumerate(_in_order(encoded, batches[done:], len(batches), workers), done):
            for job, (arrays, pauses) in zip(batch, results, strict=True):
                for (name, _, _), array in zip(TokenSet.FILES, arrays, strict=True):
                    files[name].write(array.tobytes())
                frames = len(arrays[0])
                name = Path(job.clip.path).name
                documents.append(Document(total, frames, job.clip.kind, job.clip.group, job.split, name, pauses))
                total += frames
            if number % 50 == 49 or number == len(batches) - 1:
                for file in files.values():
                    file.flush()
                described = [asdict(document) for document in documents]
                kept = {"made_from": made_from | heard, "batches": number + 1, "documents": described}
                put_json(progress, kept)
    put_json(index, {"made_from": made_from, "documents": [asdict(d) for d in documents]} | heard)
    progress.unlink(missing_ok=True)
    return TokenSet(out)
