"""`continue` and `score` without a server: its arithmetic, in this process. Imports torch."""

import base64
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from app.audio.decode import DecodedAudio, decode
from app.audio.encode import encode
from app.audio.mixing import join, limit, opening
from app.audio.samples import Samples
from app.cli.config import settings_from
from app.cli.options import errors, limit_threads, pick_device
from app.cli.progress import Bar, progress_bar
from app.continuations.schemas import ContinueForm
from app.corpora.scoring import MAX_SECONDS, result_or_error
from app.models.catalog import folders
from app.prompts.service import too_short
from app.scores.schemas import ScoreForm
from app.scores.service import detail_of, window_of
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds
from model.inference.backend import backend_for
from model.inference.generate import generate
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.scoring import CHUNK_FRAMES, MelSource, Score, TooShortError, score
from model.inference.types import PromptState

MadeMel = Literal["decoded", "masked"]


def load(
    bundle: Path | None, device: str | None, threads: int | None, codebooks: int | None = None
) -> tuple[Bundle, int | None]:
    """The bundle and the number of codebooks that the flags, or the server's settings, name. Raises UserError."""
    settings = settings_from(bundle=bundle, device=device, threads=threads, codebooks=codebooks)
    limit_threads(threads or 1)  # one request: its matrices are too small to be shared out
    with errors.status("loading the weights"):
        return load_bundle(
            folders(settings.bundle)[0], pick_device(settings.device), settings.codec
        ), settings.codebooks


def read(path: Path, start_seconds: float = 0.0, end_seconds: float | None = None) -> DecodedAudio:
    """A file, or a part of it, as the server would read it. Raises ServiceError."""
    with path.open("rb") as file:
        return decode(file, MAX_SECONDS, start_seconds, end_seconds)


class Continuing:
    """One continuation: its prompt is read at once, its frames are made as they are taken."""

    def __init__(self, bundle: Bundle, form: ContinueForm, clip: Path, codebooks: int | None, mel: MadeMel) -> None:
        self.bundle, self.form, self.mel = bundle, form, mel
        self.options: SamplingOptions = form.sampling()
        self.frames = frames_for_seconds(form.seconds)
        heard = read(clip, form.prompt_start, form.prompt_end)
        self.warnings = [asdict(warning) for warning in heard.warnings]
        prompt = torch.from_numpy(heard.samples)
        self.own: Samples = prompt.numpy()
        chunk_seconds = CHUNK_FRAMES / FRAME_RATE_HZ
        try:
            with progress_bar("reading the prompt", len(prompt) / SAMPLE_RATE_HZ, "x real time") as bar:
                self.state: PromptState = prefill(
                    bundle, prompt, codebooks=codebooks, masked=mel == "masked",
                    between=lambda: bar.advance(chunk_seconds),
                )  # fmt: skip
        except TooShortError as error:
            raise too_short() from error

    def __iter__(self) -> Iterator[tuple[int, float, Samples]]:
        """Coarse token, its log-probability and 320 samples of each frame."""
        with progress_bar("continuing", self.frames / FRAME_RATE_HZ, "x real time") as bar:
            for frame in self._frames():
                bar.advance(1 / FRAME_RATE_HZ)
                yield frame

    def _frames(self) -> Iterator[tuple[int, float, Samples]]:
        if self.mel == "decoded":  # the server's own arithmetic, so that the same seed gives the same bytes
            slots = backend_for(self.bundle, 1, self.state.codebooks)
            slots.join(0, self.state, self.options)
            for _ in range(self.frames):
                one = slots.step([0])
                yield int(one.codes[0, 0]), float(one.logprobs[0]), one.samples[0]
            return
        made = generate(self.bundle, self.state, frames=self.frames, options=self.options, mel=self.mel)
        for frame in made:
            yield int(frame.codes[0, 0]), float(frame.logprobs[0]), frame.samples[0].cpu().numpy()

    def stream(self) -> Iterator[Samples]:
        """The prompt's own samples, when asked for, and those of the continuation as they are made."""
        if self.form.include_prompt:
            yield opening(self.own, self.state.tail[0].cpu().numpy())
        for _, _, samples in self:
            yield limit(samples)

    def whole(self) -> dict[str, Any]:
        """What the server answers, less what only a server knows."""
        made = list(self)
        logprobs = [frame[1] for frame in made]
        samples = np.concatenate([frame[2] for frame in made])
        tail = self.state.tail[0].cpu().numpy()
        samples = join(self.own, tail, samples) if self.form.include_prompt else limit(samples)
        nll = -sum(logprobs) / len(logprobs)
        tokens = len(self.state.tokens)
        body: dict[str, Any] = {
            "object": "audio.continuation",
            "model": self.bundle.name,
            "seed": self.options.seed,
            "sample_rate": SAMPLE_RATE_HZ,
            "frame_rate": FRAME_RATE_HZ,
            "prompt": {"seconds": tokens / FRAME_RATE_HZ, "tokens": tokens, "nll": self.state.nll},
            "choices": [
                {
                    "index": 0,
                    "audio": {"format": "wav", "data": base64.b64encode(encode(samples, "wav")).decode()},
                    "seconds": len(samples) / SAMPLE_RATE_HZ,
                    "tokens": [frame[0] for frame in made],
                    "logprobs": logprobs,
                    "nll": nll,
                    "perplexity": math.exp(nll),
                    "finish_reason": "length",
                }
            ],
        }
        return body | ({"warnings": self.warnings} if self.warnings else {})


def score_clips(bundle: Bundle, clips: list[Path], form: ScoreForm, mel: MelSource) -> list[dict[str, Any]]:
    """One result a clip, an error in its place where it cannot be scored: what the server answers."""
    results: list[dict[str, Any]] = []
    context, window, detail = frames_for_seconds(form.prompt_seconds), window_of(form), detail_of(form)
    for index, clip in enumerate(clips, 1):
        name = clip.name + (f" ({index} of {len(clips)})" if len(clips) > 1 else "")

        def scored(samples: torch.Tensor, name: str = name) -> Score:
            with progress_bar(name, len(samples) / SAMPLE_RATE_HZ, "x real time") as bar:
                blocks = _told(samples, bar)
                return score(bundle, blocks, context_frames=context, mel=mel, window=window, detail=detail)

        results.append(result_or_error(clip.name, partial(read, clip), scored, form))
    return results


def _told(samples: torch.Tensor, bar: Bar) -> Iterator[torch.Tensor]:
    """The samples (N,) in blocks of a second; the bar hears of each that is asked for after it."""
    for start in range(0, len(samples), SAMPLE_RATE_HZ):
        block = samples[start : start + SAMPLE_RATE_HZ]
        yield block
        bar.advance(len(block) / SAMPLE_RATE_HZ)
