"""What the evaluations share: models under test, test clips, many documents at a time, and the JSON they leave."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.checkpoint import Bundle, BundleError, load_bundle, tokeniser_sha256
from model.constants import MAX_CODEBOOKS, SAMPLE_RATE_HZ
from model.files import put_json
from model.lm.config import DecoderConfig
from model.lm.hybrid_lm import HybridLM, shift
from model.training.corpus import Corpus, find_files, read_audio
from model.training.loop import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SPEECH = ROOT.parent / "shared" / "data" / "speech" / "test"  # any folder of SPEAKER-CHAPTER-NUMBER files will do
MASKED = ":masked"
DEFAULT = ROOT / "weights" / "default"
TABLE = ROOT / "runs" / "table" / "runs"  # of quality/table.py: matched trainings, much shorter than the bundle's


@dataclass(frozen=True)
class Subject:
    """A model under test: a bundle, whether its mel is withheld, and how many codebooks it makes."""

    name: str
    bundle: Bundle
    masked: bool = False
    codebooks: int = MAX_CODEBOOKS

    @property
    def mel(self) -> Literal["real", "masked"]:
        return "masked" if self.masked or not self.bundle.lm.config.mel else "real"

    def described(self) -> dict[str, Any]:
        """For the record: what was measured."""
        decoder = self.bundle.lm
        return {
            "bundle": self.bundle.name,
            "preset": self.bundle.preset,
            "mel": self.mel,
            "codebooks": self.codebooks,
            "parameters": decoder.parameter_count(),
            "hashes": self.bundle.hashes,
            "made_by": self.bundle.made_by,
        }


def from_run(folder: Path, codec_of: Bundle) -> Bundle:
    """The language model of a run of `benchmarks/quality/table.py`, with a bundle's codec.

    Such models learn coarse tokens only: their depth decoder is untrained. Raises BundleError when the run's tokens
    come from another codec.
    """
    settings = json.loads((folder / "settings.json").read_text())["settings"]
    if settings["tokens"]["codec_sha256"] != tokeniser_sha256(codec_of.codec):
        raise BundleError(f"the tokens of {folder.name} come from another codec than that of {codec_of.name}")
    model = HybridLM(DecoderConfig.from_dict(settings["config"]))
    model.load_state_dict(torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)["model"])
    training = {name: settings["training"][name] for name in ("steps", "batch", "length", "rate", "seed")}
    preset = "hybrid-4m" if model.config.mel else "gpt-s"
    model.eval().requires_grad_(False)
    return Bundle(codec_of.codec, model, folder.name, preset, made_by={"training": training})


def best_run(name: str, runs: Path = TABLE) -> Path | None:
    """The finished run of a row of the table that has the lowest NLL on validation; None where there is none."""

    def valid_nll(result: dict[str, Any]) -> float:
        kinds = [
            (sum(one["nll"] for one in kind), sum(one["frames"] for one in kind)) for kind in result["valid"].values()
        ]
        mean: float = sum(nll / frames for nll, frames in kinds) / len(kinds)
        return mean

    results = [(path.parent, json.loads(path.read_text())) for path in sorted(runs.glob("*/result.json"))]
    found = {folder: valid_nll(result) for folder, result in results if result["row"] == name}
    return min(found, key=lambda folder: found[folder], default=None)


def default_models(bundle: Path, runs: Path = TABLE) -> list[str]:
    """The bundle with and without mel; the table's token-only model and its hybrid, where both have been trained."""
    matched = {name: best_run(name, runs) for name in ("hybrid-4m", "gpt-s")}
    return [
        f"hybrid-4m={bundle}",
        f"hybrid-4m, mel masked={bundle}{MASKED}",
        *(f"{name} of the table={folder}" for name, folder in matched.items() if None not in matched.values()),
    ]


def load_subjects(given: Sequence[str], default: Path) -> list[Subject]:
    """``NAME=FOLDER[:masked][:K]`` each, K codebooks; FOLDER is a bundle, or a table's run with the default's codec."""
    base = load_bundle(default)
    loaded: dict[Path, Bundle] = {default.resolve(): base}
    subjects = []
    for text in given:
        name, _, where = text.partition("=")
        where, _, wanted = where.rpartition(":") if where[-1:].isdigit() and ":" in where else (where, "", "")
        folder = Path(where.removesuffix(MASKED)).resolve()
        run = (folder / "checkpoint.pt").exists()
        if folder not in loaded:
            loaded[folder] = from_run(folder, base) if run else load_bundle(folder)
        books = 1 if run else loaded[folder].codec.config.codebooks
        subjects.append(Subject(name, loaded[folder], where.endswith(MASKED), int(wanted or books)))
    return subjects


def speaker_of(path: Path) -> str:
    """LibriSpeech's leading number."""
    return path.stem.split("-")[0]


def clips_in(folder: Path, min_seconds: float = 0.0) -> list[tuple[str, str, Tensor]]:
    """(name, speaker, samples (N,) at 24 kHz) of every file of that length, in the order of their paths."""
    clips = ((path, torch.from_numpy(read_audio(path))) for path in find_files([folder]))
    return [(path.stem, speaker_of(path), x) for path, x in clips if len(x) >= min_seconds * SAMPLE_RATE_HZ]


@torch.inference_mode()
def logprobs(subject: Subject, tokens: Tensor, mel_frames: Tensor) -> Tensor:
    """Of coarse tokens (B, T) that come with mel frames (B, T, 64), each row a document: (B, T)."""
    model = subject.bundle.lm
    inputs, mel = shift(tokens, None if subject.mel == "masked" else mel_frames)
    logits = model.logits(model(inputs, mel)).float()
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def write_json(path: Path, body: dict[str, Any]) -> None:
    """The body with the machine it was made on, replaced in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    put_json(path, {**body, "machine": machine()}, indent=1)


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers within dictionaries and lists, rounded for a file that people read."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    return value


def batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """The items, ``size`` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def valid_clips(corpus: Path) -> list[tuple[str, str, Tensor]]:
    """The same of a corpus's validation speakers: the only clips that a default may be chosen by."""
    opened = Corpus(corpus)
    return [
        (Path(clip.path).stem, clip.group, torch.from_numpy(opened.read(clip)))
        for clip in opened.split("valid", "speech")
    ]


def by_speaker(clips: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
    """All that each speaker says, in one piece, speakers in alphabetical order."""
    said: dict[str, list[Tensor]] = {}
    for _, speaker, samples in clips:
        said.setdefault(speaker, []).append(samples)
    return {speaker: torch.cat(said[speaker]) for speaker in sorted(said)}
