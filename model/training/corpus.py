"""Audio for training: any folders of audio or MIDI -> one flat file of 24 kHz mono samples, with an index.

Decoding Opus, resampling and rendering MIDI take longer than a training step, so they are done once. The flat file is
read through memory mapping: training on hundreds of hours needs no more memory than on one.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from rich.progress import track

from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.files import put_json

Split = Literal["train", "valid"]
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
MIDI_SUFFIXES = {".mid", ".midi"}
SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # Debian's fluid-soundfont-gm
MIDI_RMS = 0.06  # FluidSynth's levels come out low (rms 0.01); speech corpora lie near this
SILENT_PEAK = 1e-3  # FluidSynth's silence is not zero but dither, 3e-5
VALID_PERCENT = 4  # of the groups (speakers, pieces), by a hash of their name


class DataError(ValueError):
    """A folder, a file or a tool that training needs is not usable."""


@dataclass(frozen=True)
class Clip:
    """One file of the corpus; ``start`` and ``length`` are in samples of the flat file."""

    path: str
    group: str  # speaker or piece: train and valid share none
    kind: Literal["speech", "music"]
    start: int
    length: int


def read_audio(path: Path) -> npt.NDArray[np.float32]:
    """A file's samples as mono at 24 kHz, (N,) float32. Raises DataError when it cannot be read."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    mono = samples.mean(axis=1)
    resampled = mono if rate == SAMPLE_RATE_HZ else soxr.resample(mono, rate, SAMPLE_RATE_HZ)
    return np.asarray(resampled, dtype=np.float32)


def render_midi(path: Path, sound_font: Path = SOUND_FONT) -> npt.NDArray[np.float32]:
    """A MIDI file played by FluidSynth, mono at 24 kHz, (N,) float32, brought to ``MIDI_RMS``."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "out.wav"
        command = ["fluidsynth", "-ni", "-q", "-r", str(SAMPLE_RATE_HZ), "-g", "0.6", "-O", "s16", "-F", str(wav)]
        try:
            subprocess.run([*command, str(sound_font), str(path)], check=True, capture_output=True)
        except FileNotFoundError as error:
            raise DataError("MIDI needs FluidSynth (Debian: fluidsynth, fluid-soundfont-gm)") from error
        except subprocess.CalledProcessError as error:
            raise DataError(f"FluidSynth cannot render {path}: {error.stderr.decode(errors='replace')}") from error
        samples = read_audio(wav)
    if not len(samples) or float(np.abs(samples).max()) < SILENT_PEAK:
        raise DataError(f"{path} renders to silence")
    samples *= MIDI_RMS / float(np.sqrt(np.mean(samples**2)))
    peak = float(np.abs(samples).max())
    return samples if peak <= 0.99 else samples * (0.99 / peak)


def group_of(path: Path, kind: str) -> str:
    """What a split must not cut through: the speaker (LibriSpeech's leading number), the piece, or the folder."""
    if kind == "music":
        return path.stem
    head, _, rest = path.stem.partition("-")
    if not (head.isdigit() and rest):
        return path.parent.name
    by_chapter = path.parent.parent.name == head  # LibriSpeech's layout: SPEAKER/CHAPTER/SPEAKER-CHAPTER-N.flac
    return head if by_chapter else f"{path.parent.name}/{head}"


def is_valid_group(group: str, share: float) -> bool:
    """Whether a group belongs to the validation split; one that is a large share of the corpus never does."""
    return share < 0.05 and int(hashlib.sha256(group.encode()).hexdigest(), 16) % 100 < VALID_PERCENT


class Corpus:
    """A flat int16 file of samples with its index of clips."""

    def __init__(self, folder: Path) -> None:
        """Opens what `build_corpus` wrote. Raises DataError when it is not there."""
        index = folder / "index.json"
        if not index.exists():
            raise DataError(f"no corpus in {folder}")
        self.folder = folder
        self.clips = [Clip(**clip) for clip in json.loads(index.read_text())["clips"]]
        self.samples: npt.NDArray[np.int16] = np.memmap(folder / "samples.i16", dtype=np.int16, mode="r")
        lengths: dict[str, int] = {}
        for clip in self.clips:
            lengths[clip.group] = lengths.get(clip.group, 0) + clip.length
        total = max(sum(lengths.values()), 1)
        self._valid = {group for group, length in lengths.items() if is_valid_group(group, length / total)}

    def split(self, split: Split, kind: str | None = None) -> list[Clip]:
        """The clips of a split, all or of one kind."""
        wanted = [clip for clip in self.clips if (clip.group in self._valid) == (split == "valid")]
        return [clip for clip in wanted if kind is None or clip.kind == kind]

    def read(self, clip: Clip, start: int = 0, length: int | None = None) -> npt.NDArray[np.float32]:
        """Samples of a clip, or a part of it, (n,) float32."""
        stop = clip.length if length is None else min(start + length, clip.length)
        return self.samples[clip.start + start : clip.start + stop].astype(np.float32) / 32768.0

    def hours(self, split: Split, kind: str | None = None) -> float:
        return sum(clip.length for clip in self.split(split, kind)) / SAMPLE_RATE_HZ / 3600


def find_files(folders: Sequence[Path]) -> list[Path]:
    """Audio and MIDI files under the folders, sorted. Raises DataError when there are none."""
    files = sorted(
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES | MIDI_SUFFIXES
    )
    if not files:
        raise DataError(f"no audio or MIDI under {', '.join(str(folder) for folder in folders)}")
    return files


def _decoded(files: Sequence[Path], workers: int) -> Iterator[tuple[Path, npt.NDArray[np.float32] | DataError]]:
    def decode(path: Path) -> npt.NDArray[np.float32] | DataError:
        try:
            return render_midi(path) if path.suffix.lower() in MIDI_SUFFIXES else read_audio(path)
        except DataError as error:
            return error

    block = 64  # bounds what is decoded but not yet written
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), block):
            batch = files[start : start + block]
            yield from zip(batch, pool.map(decode, batch), strict=True)


def build_corpus(folders: Sequence[Path], out: Path, workers: int = 2, music: bool = False) -> Corpus:
    """Decode every file under ``folders`` into ``out``, once; a second call opens what the first one made.

    MIDI counts as music; audio files do too with ``music``. Files that cannot be read are left out and listed in the
    index. Raises DataError when nothing is usable.
    """
    wanted = {"folders": sorted(str(folder.resolve()) for folder in folders), "music": music}
    index = out / "index.json"
    if index.exists() and json.loads(index.read_text())["made_from"] == wanted:
        return Corpus(out)
    files = find_files(folders)
    out.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)  # or a kill would leave that of other clips beside these samples
    clips: list[Clip] = []
    skipped: list[str] = []
    position = 0
    with (out / "samples.i16").open("wb") as flat:
        for path, decoded in track(_decoded(files, workers), total=len(files), description="reading audio"):
            if isinstance(decoded, DataError) or len(decoded) < HOP_SAMPLES:
                skipped.append(str(decoded) if isinstance(decoded, DataError) else f"{path}: shorter than a frame")
                continue
            kind: Literal["speech", "music"] = "music" if music or path.suffix.lower() in MIDI_SUFFIXES else "speech"
            pcm = np.clip(np.nan_to_num(decoded) * 32768.0, -32768, 32767).astype(np.int16)
            flat.write(pcm.tobytes())
            clips.append(Clip(str(path), group_of(path, kind), kind, position, len(pcm)))
            position += len(pcm)
    if not clips:
        raise DataError(f"none of {len(files)} files could be read; the first: {skipped[0]}")
    body: dict[str, Any] = {"made_from": wanted, "skipped": skipped, "clips": [asdict(clip) for clip in clips]}
    put_json(index, body)
    return Corpus(out)
