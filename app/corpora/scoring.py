"""Scores of clips, one at a time: the row of each, whatever becomes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.audio.decode import DecodedAudio, decode
from app.corpora.clips import Clip
from app.errors import ServiceError
from app.scores.schemas import ScoreForm
from app.scores.service import clip_error, detail_of, result, window_of
from model.checkpoint import Bundle, load_bundle
from model.constants import frames_for_seconds
from model.inference.scoring import MelSource, Score, TooShortError, WindowError, score

MAX_SECONDS = 48 * 3600.0  # here the only limit is memory


def result_or_error(
    filename: str, decode_clip: Callable[[], DecodedAudio], score_clip: Callable[[Tensor], Score], form: ScoreForm
) -> dict[str, Any]:
    """What the server answers of one clip: its result, or the error in its place."""
    try:
        audio = decode_clip()
        return result(filename, score_clip(torch.from_numpy(audio.samples)), form, audio.warnings)
    except (TooShortError, WindowError) as error:
        return {"filename": filename, "error": clip_error(error).body(None)}
    except ServiceError as error:
        return {"filename": filename, "error": error.body(None)}
    except OSError as error:
        return {"filename": filename, "error": {"code": "file_unreadable", "message": error.strerror or str(error)}}


def failure(clip: Clip, code: str, message: str) -> dict[str, Any]:
    """The row of a clip that has no score."""
    return {"id": clip.id, "filename": clip.filename, "error": {"code": code, "message": message}}


@dataclass(frozen=True)
class Job:
    """What a process needs to score clips, as plain data."""

    bundle: Path
    device: str
    codec: Path | None
    threads: int
    form: ScoreForm
    mel: MelSource = "real"

    def load(self) -> "Scorer":
        """Raises BundleError."""
        return Scorer(load_bundle(self.bundle, self.device, self.codec), self.form, self.mel)


class Scorer:
    """A bundle, and how clips are to be scored with it."""

    def __init__(self, bundle: Bundle, form: ScoreForm, mel: MelSource) -> None:
        self.bundle, self._form, self._mel = bundle, form, mel
        self._context, self._window, self._detail = (
            frames_for_seconds(form.prompt_seconds), window_of(form), detail_of(form)
        )  # fmt: skip

    def _score(self, samples: Tensor) -> Score:
        return score(
            self.bundle, samples,
            context_frames=self._context, mel=self._mel, window=self._window, detail=self._detail,
        )  # fmt: skip

    def row(self, clip: Clip) -> dict[str, Any]:
        """The clip's row. Raises nothing: what one clip does must not end hours of work on the others."""
        if clip.fault is not None:
            return failure(clip, "invalid_manifest", clip.fault)

        def decoded() -> DecodedAudio:
            with clip.opened() as file:
                return decode(file, MAX_SECONDS, clip.start_seconds, clip.end_seconds)

        try:
            row = {"id": clip.id, **result_or_error(clip.filename, decoded, self._score, self._form)}
            nll = row.get("nll", 0.0)
            return row if nll - nll == 0 else failure(clip, "internal_error", "a likelihood is not finite")
        except Exception as error:
            return failure(clip, "internal_error", f"{type(error).__name__}: {error}")
