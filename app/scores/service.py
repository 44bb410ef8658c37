"""What POST /score does between its form and its answer."""

import asyncio
import math
import time
from dataclasses import asdict
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from app.audio.notices import Notice
from app.engine.engine import Engine
from app.engine.requests import ScoreRequest
from app.errors import AudioTooShort, ClientError, DeadlinePassed, InvalidParameter
from app.scores.schemas import ScoreForm, ScoreResponse
from app.server.limits import client_of
from app.server.logs import note
from app.server.tracing import follow
from app.server.uploads import Upload, deadline, decoded, turn
from app.settings import Settings
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds
from model.inference.scoring import Baseline, Score, TooShortError, Window, WindowError, WindowScore


def window_of(form: ScoreForm) -> Window | None:
    """The window that a form asks for, in frames; it holds one at least."""
    if not form.windowed:
        return None
    begin = form.prompt_seconds if form.window_start is None else form.window_start
    start, stop = frames_for_seconds(begin), None
    if form.window_seconds is not None:
        stop = max(frames_for_seconds(begin + form.window_seconds), start + 1)
    return Window(start, stop, alone=form.normalise_by == "alone")


def clip_error(error: TooShortError | WindowError) -> ClientError:
    """What a clip that cannot be scored is answered with."""
    if isinstance(error, TooShortError):
        return AudioTooShort(str(error), "file")
    field = "window_start" if error.edge == "start" else "window_seconds"
    return InvalidParameter(f"{field}: {error}", field)


def window_result(window: WindowScore, by: Baseline | None) -> dict[str, Any]:
    """The localised score, normalised if asked for."""
    body: dict[str, Any] = {
        "start": window.start / FRAME_RATE_HZ,
        "seconds": len(window.logprobs) / FRAME_RATE_HZ,
        "tokens": len(window.logprobs),
        "nll": window.nll,
        "perplexity": math.exp(window.nll),
    }
    if by is not None:
        baseline = window.baseline_nll(by)
        body |= {"normalised_by": by, "baseline_nll": baseline, "normalised_nll": window.nll - baseline}
    return body


def result(filename: str, score: Score, form: ScoreForm, warnings: tuple[Notice, ...] = ()) -> dict[str, Any]:
    """One clip's part of the answer."""
    body: dict[str, Any] = {
        "filename": filename,
        "seconds": len(score.tokens) / FRAME_RATE_HZ,
        "tokens": len(score.tokens),
        "nll": score.nll,
        "perplexity": score.perplexity,
        "bits_per_second": score.bits_per_second,
        "accuracy": score.accuracy,
    }
    if score.window is not None:
        body["window"] = window_result(score.window, form.normalise_by)
    if form.detail == "tokens":
        body |= {"logprobs": score.logprobs.tolist(), "codes": score.tokens.tolist()}
    if warnings:
        body["warnings"] = [asdict(warning) for warning in warnings]
    return body


async def score_file(request: Request, file: UploadFile, form: ScoreForm) -> tuple[Score, tuple[Notice, ...]]:
    """Decode one clip and score it; what is to be told of its file comes with it. Raises ServiceError."""
    settings: Settings = request.app.state.settings
    engine: Engine = request.app.state.engine
    arrived, until = deadline(request, settings, form.timeout_seconds)
    clips: asyncio.Semaphore = request.app.state.clips
    try:
        async with asyncio.timeout(max(until - time.monotonic(), 0.0)):
            await clips.acquire()
    except TimeoutError:
        raise DeadlinePassed("the clip waited for its turn until its time was up") from None
    try:
        async with turn(request.app.state.clip_decoders, until):
            heard = await decoded(request, file, until, settings.max_score_seconds)
        await request.app.state.limits.audio(client_of(request), len(heard.samples) / SAMPLE_RATE_HZ)
        context, warnings = frames_for_seconds(form.prompt_seconds), heard.warnings
        # the request alone holds the clip, so that the engine can let go of it
        work = ScoreRequest(arrived, until, heard.samples, context, window_of(form))
        del heard
        follow(request, work)
        scored: Score = await engine.submit(work)
    except (TooShortError, WindowError) as error:
        raise clip_error(error) from error
    finally:
        clips.release()
    return scored, warnings


async def score_audio(request: Request, upload: Upload[ScoreForm]) -> ScoreResponse:
    """Score every clip of a request; one that cannot be scored has its error in its place.

    Raises the first clip's error when all have one, and what is no clip's fault (504, 503) at once.
    """
    note(request, clips=len(upload.files))
    results: list[dict[str, Any]] = []
    errors: list[ClientError] = []
    for file in upload.files:
        name = (file.filename or "")[:255]
        try:
            score, warnings = await score_file(request, file, upload.form)
            results.append(result(name, score, upload.form, warnings))
        except ClientError as error:
            error.__traceback__ = error.__cause__ = error.__context__ = (
                None  # of frames, which hold what they worked on
            )
            errors.append(error)
            request.app.state.engine.metrics.input_errors.labels(error.code).inc()
            results.append({"filename": name, "error": error.body(request.state.request_id)})
    if len(errors) == len(results):
        errors[0].counted = True
        raise errors.pop(0)  # kept in the list, it would hold itself by this frame
    return ScoreResponse.model_validate({"model": request.app.state.engine.bundle.name, "results": results})


def response(scored: ScoreResponse) -> JSONResponse:
    """The answer as JSON; an hour's tokens take long enough to write that it is no work for the event loop."""
    return JSONResponse(scored.model_dump(exclude_unset=True) | {"object": scored.object})
