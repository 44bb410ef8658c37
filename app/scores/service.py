"""What POST /score does between its form and its answer."""

import asyncio
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from app.audio.notices import Notice
from app.audio.picture import Sketch
from app.engine.engine import Engine
from app.engine.requests import Model, ScoreRequest
from app.errors import AudioTooShort, ClientError, DeadlinePassed, InvalidParameter
from app.scores.reports import REPORTS, Scored, check_clips
from app.scores.schemas import MAX_ALTERNATIVES, ScoreForm, ScoreResponse
from app.server.limits import client_of
from app.server.logs import note
from app.server.tracing import follow
from app.server.uploads import Upload, deadline, decoded, turn
from app.settings import Settings
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds, frames_in
from model.inference.scoring import Baseline, Detail, Score, TooShortError, Window, WindowError, WindowScore


@dataclass(frozen=True)
class Answer:
    """The scores of a request's clips, to be written in the form that it asks for."""

    form: ScoreForm
    scores: ScoreResponse
    sketch: Sketch | None


@dataclass(frozen=True)
class ScoredClip:
    """A clip's score, what is to be told of its file, and what a picture of it needs, if there is to be one."""

    score: Score
    warnings: tuple[Notice, ...]
    sketch: Sketch | None


def window_of(form: ScoreForm) -> Window | None:
    """The window that a form asks for, in frames; it holds one at least."""
    if not form.windowed:
        return None
    begin = form.prompt_seconds if form.window_start is None else form.window_start
    start, stop = frames_for_seconds(begin), None
    if form.window_seconds is not None and form.window_step is None:
        stop = max(frames_for_seconds(begin + form.window_seconds), start + 1)
    return Window(start, stop, alone=form.normalise_by == "alone")


def detail_of(form: ScoreForm) -> Detail | None:
    """What a form asks of every position beside its log-probability."""
    wanted = Detail(spread=form.detail == "full", alternatives=form.top_logprobs)
    return wanted if wanted.spread or wanted.alternatives else None


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
        "log_likelihood": window.log_likelihood,
        "nll": window.nll,
        "perplexity": math.exp(window.nll),
    }
    if by is not None:
        baseline = window.baseline_nll(by)
        body |= {"normalised_by": by, "baseline_nll": baseline, "normalised_nll": window.nll - baseline}
    return body


def scan_result(window: WindowScore, form: ScoreForm) -> dict[str, Any]:
    """Localised scores all along the clip. Raises InvalidParameter when no window fits into it."""
    assert form.window_step is not None
    seconds = form.window_step if form.window_seconds is None else form.window_seconds
    try:
        scan = window.scan(max(frames_for_seconds(seconds), 1), max(frames_for_seconds(form.window_step), 1))
    except WindowError as error:
        raise clip_error(error) from error
    body: dict[str, Any] = {
        "start": scan.start / FRAME_RATE_HZ,
        "window_seconds": scan.length / FRAME_RATE_HZ,
        "step_seconds": scan.step / FRAME_RATE_HZ,
        "nll": scan.nll.tolist(),
    }
    if form.normalise_by is not None:
        body |= {"normalised_by": form.normalise_by, "baseline_nll": scan.baseline_nll.tolist()}
        body["normalised_nll"] = (scan.nll - scan.baseline_nll).tolist()
    return body


def position_results(score: Score) -> dict[str, Any]:
    """Lists with an entry a token."""
    body: dict[str, Any] = {"logprobs": score.logprobs.tolist(), "codes": score.tokens.tolist()}
    more = score.positions
    if more is not None:
        of_all = {"entropy": more.entropy, "rank": more.rank, "top_codes": more.top_tokens,
                  "top_logprobs": more.top_logprobs}  # fmt: skip
        body |= {name: values.tolist() for name, values in of_all.items() if values is not None}
    return body


def result(filename: str, score: Score, form: ScoreForm, warnings: tuple[Notice, ...] = ()) -> dict[str, Any]:
    """One clip's part of the answer. Raises InvalidParameter for a scan that the clip has no room for."""
    body: dict[str, Any] = {
        "filename": filename,
        "seconds": len(score.tokens) / FRAME_RATE_HZ,
        "tokens": len(score.tokens),
        "log_likelihood": score.log_likelihood,
        "nll": score.nll,
        "perplexity": score.perplexity,
        "bits_per_second": score.bits_per_second,
        "accuracy": score.accuracy,
    }
    if score.window is not None and form.window_step is not None:
        body["scan"] = scan_result(score.window, form)
    elif score.window is not None:
        body["window"] = window_result(score.window, form.normalise_by)
    if form.positions:
        body |= position_results(score)
    if warnings:
        body["warnings"] = [asdict(warning) for warning in warnings]
    return body


async def score_file(
    request: Request, file: UploadFile, form: ScoreForm, alternatives: int, model: Model
) -> ScoredClip:
    """Decode one clip and score it. Raises ServiceError.

    ``alternatives``: so many the answer may still hold.
    """
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
        if frames_in(len(heard.samples)) * form.top_logprobs > alternatives:
            message = f"top_logprobs: an answer holds {MAX_ALTERNATIVES} alternatives at most; ask for fewer or less"
            raise InvalidParameter(message, "top_logprobs")
        sketch = None
        if REPORTS[form.response_format].picture and frames_in(len(heard.samples)):
            sketch = await to_thread.run_sync(Sketch.of, heard.samples, limiter=request.app.state.encoders)
        # the request alone holds the clip, so that the engine can let go of it
        work = ScoreRequest(arrived, until, heard.samples, context, window_of(form), detail_of(form), model=model)
        del heard
        follow(request, work)
        scored: Score = await engine.submit(work)
    except (TooShortError, WindowError) as error:
        raise clip_error(error) from error
    finally:
        clips.release()
    return ScoredClip(scored, warnings, sketch)


async def score_audio(request: Request, upload: Upload[ScoreForm], model: Model) -> Answer:
    """Score every clip of a request; one that cannot be scored has its error in its place.

    Raises the first clip's error when all have one, and what is no clip's fault (504, 503, a format that holds fewer
    clips) at once.
    """
    note(request, clips=len(upload.files))
    check_clips(upload.form.response_format, len(upload.files))
    results: list[dict[str, Any]] = []
    errors: list[ClientError] = []
    alternatives = MAX_ALTERNATIVES
    sketch = None
    for file in upload.files[: 1 if REPORTS[upload.form.response_format].picture else None]:
        name = (file.filename or "")[:255]
        try:
            clip = await score_file(request, file, upload.form, alternatives, model)
            alternatives -= len(clip.score.tokens) * upload.form.top_logprobs
            results.append(result(name, clip.score, upload.form, clip.warnings))
            sketch = clip.sketch
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
    scores = ScoreResponse.model_validate({"model": model.name, "results": results})
    return Answer(upload.form, scores, sketch)


def response(answer: Answer) -> Response:
    """The answer in the form that was asked for; an hour's tokens take too long to write for the event loop."""
    body = answer.scores.model_dump(exclude_unset=True)
    context = frames_for_seconds(answer.form.prompt_seconds)
    report = REPORTS[answer.form.response_format]
    content = report.content(Scored(body["model"], body["results"], context, answer.sketch))
    return Response(content, media_type=report.media_type)
