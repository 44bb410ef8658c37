"""What POST /continue does between its form and its answer."""

import base64
import math
import time
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.audio.encode import encode
from app.audio.formats import MEDIA_TYPES, Samples
from app.audio.mixing import join, limit
from app.audio.notices import Notice, header
from app.continuations.schemas import (
    AudioBody,
    Choice,
    ChoiceFigures,
    ContinueForm,
    ContinueResponse,
    Figures,
    PromptBody,
    Timings,
)  # fmt: skip
from app.engine.engine import Engine
from app.engine.requests import ContinueRequest, GenerationResult
from app.errors import AudioTooLong, AudioTooShort, InvalidParameter, ServiceError
from app.server.limits import client_of
from app.server.logs import note
from app.server.multipart import Upload
from app.server.tracing import follow
from app.server.uploads import deadline, decoded
from app.settings import Settings
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds
from model.inference.scoring import MIN_FRAMES, TooShortError


@dataclass(frozen=True)
class ContinuationRequest:
    """A request to continue, checked and decoded."""

    form: ContinueForm
    engine_request: ContinueRequest
    own: Samples  # (N,): the prompt's own samples, none when they are not to be in the answer
    warnings: tuple[Notice, ...]  # what is to be told of the prompt's file

    def stage(self) -> str:
        """What the request waits for, for the count of those who leave."""
        return "send" if self.engine_request.stage == "done" else self.engine_request.stage


def mean_nll(logprobs: np.ndarray) -> float:
    """Minus the mean of (T,) log-probabilities, nats a token."""
    return -float(logprobs.astype(np.float64).mean())


async def ordered(request: Request, upload: Upload[ContinueForm]) -> ContinuationRequest:
    """Check the form against the settings and decode the prompt. Raises ServiceError."""
    settings: Settings = request.app.state.settings
    form, (file,) = upload.form, upload.files
    if form.seconds > settings.max_seconds:
        raise InvalidParameter(f"seconds: at most {settings.max_seconds:g}", "seconds")
    if form.prompt_start > settings.max_score_seconds:  # what is skipped is decoded, too
        raise AudioTooLong(f"prompt_start: at most {settings.max_score_seconds:g} s into a file", "prompt_start")
    arrived, until = deadline(request, settings, form.timeout_seconds)
    heard = await decoded(request, file, until, settings.max_prompt_seconds, form.prompt_start, form.prompt_end)
    prompt, frames = heard.samples, frames_for_seconds(form.seconds)
    audio_seconds = len(prompt) / SAMPLE_RATE_HZ + form.n * frames / FRAME_RATE_HZ
    note(request, n=form.n, streamed=form.stream, format=form.response_format)
    await request.app.state.limits.audio(client_of(request), audio_seconds)
    engine_request = ContinueRequest(arrived, until, prompt, frames, form.sampling(), form.n)
    follow(request, engine_request)
    own = prompt if form.include_prompt else np.zeros(0, np.float32)
    return ContinuationRequest(form, engine_request, own, heard.warnings)


def too_short() -> ServiceError:
    """What the model's TooShortError is called outside."""
    hundredths = math.ceil(100 * MIN_FRAMES / FRAME_RATE_HZ)  # rounded down, it would ask for what is still too short
    return AudioTooShort(f"a prompt needs {hundredths / 100:.2f} s or more", "file")


async def continued(request: Request, order: ContinuationRequest) -> GenerationResult:
    """The whole continuation. Raises ServiceError."""
    engine: Engine = request.app.state.engine
    try:
        made: GenerationResult = await engine.submit(order.engine_request)
        return made
    except TooShortError as error:
        raise too_short() from error


def headers(request: Request, order: ContinuationRequest, prompt_logprobs: np.ndarray) -> dict[str, str]:
    """What bare audio cannot tell, as far as it is known when the first byte is sent."""
    return {
        "x-whispergpt-id": f"cont-{request.state.request_id}",
        "x-whispergpt-seed": str(order.engine_request.options.seed),
        "x-whispergpt-prompt-nll": f"{mean_nll(prompt_logprobs):.6f}",
        "x-whispergpt-prompt-tokens": str(len(prompt_logprobs)),
        "x-whispergpt-sample-rate": str(SAMPLE_RATE_HZ),
        **header(order.warnings),
    }


def timings(order: ContinuationRequest, made: GenerationResult, first_audio_seconds: float) -> Timings:
    """Where the time of a request went, up to now."""
    return Timings(
        queue_seconds=made.queue_seconds,
        prefill_seconds=made.prefill_seconds,
        first_audio_seconds=first_audio_seconds,
        total_seconds=time.monotonic() - order.engine_request.arrived,
        real_time_factor=made.made_seconds / max(made.loop_seconds, 1e-9),
    )


def log_result(
    request: Request, order: ContinuationRequest, made: GenerationResult, first_audio_seconds: float
) -> None:
    """What the request's line in the log tells of its answer."""
    spent = timings(order, made, first_audio_seconds).model_dump(exclude={"total_seconds"})
    note(request, made_audio_seconds=made.made_seconds, finish_reason=made.finish_reason, **spent)


def server_timing(spent: Timings) -> dict[str, str]:
    """The same for a browser's network panel (W3C Server Timing), in ms."""
    parts = {"queue": spent.queue_seconds, "prefill": spent.prefill_seconds, "first-audio": spent.first_audio_seconds,
             "total": spent.total_seconds}  # fmt: skip
    return {"server-timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in parts.items())}


def figures(
    request: Request, order: ContinuationRequest, made: GenerationResult, first_audio_seconds: float
) -> Figures:
    """The numbers of an answer: all of it but the audio."""
    frames = len(made.prompt_logprobs)
    own_frames = frames if order.form.include_prompt else 0
    choices = []
    for index in range(len(made.tokens)):
        nll = mean_nll(made.logprobs[index])
        choices.append(
            ChoiceFigures(
                index=index,
                seconds=(own_frames + len(made.tokens[index])) / FRAME_RATE_HZ,
                tokens=made.tokens[index].tolist(),
                logprobs=made.logprobs[index].tolist(),
                nll=nll,
                perplexity=float(np.exp(nll)),
                finish_reason=made.finish_reasons[index],
            )
        )
    return Figures(
        id=f"cont-{request.state.request_id}",
        created=int(time.time()),
        model=request.app.state.engine.bundle.name,
        seed=order.engine_request.options.seed,
        sample_rate=SAMPLE_RATE_HZ,
        frame_rate=FRAME_RATE_HZ,
        prompt=PromptBody(seconds=frames / FRAME_RATE_HZ, tokens=frames, nll=mean_nll(made.prompt_logprobs)),
        choices=choices,
        timings=timings(order, made, first_audio_seconds),
        warnings=list(order.warnings) or None,
    )


def response(request: Request, order: ContinuationRequest, made: GenerationResult) -> Response:
    """The answer as JSON, or as bare audio with its numbers in headers. Not for the event loop: it encodes audio."""

    def audio(index: int) -> Samples:
        samples: Samples = made.samples[index]
        return join(order.own, made.tail, samples) if order.form.include_prompt else limit(samples)

    form = order.form.response_format
    if form == "json":
        numbers = figures(request, order, made, made.first_audio_seconds)
        choices = []
        for choice in numbers.choices:
            data = base64.b64encode(encode(audio(choice.index), "wav")).decode()
            choices.append(Choice(**choice.model_dump(), audio=AudioBody(format="wav", data=data)))
        body = ContinueResponse(**numbers.model_dump(exclude={"choices"}, exclude_none=True), choices=choices)
        return JSONResponse(body.model_dump(exclude_none=True), headers=server_timing(numbers.timings))
    told = headers(request, order, made.prompt_logprobs) | {
        "x-whispergpt-nll": f"{mean_nll(made.logprobs[0]):.6f}",
        "x-whispergpt-tokens": str(len(made.tokens[0])),
        "x-whispergpt-finish-reason": made.finish_reason,
    }
    told |= server_timing(timings(order, made, made.first_audio_seconds))
    return Response(encode(audio(0), form), media_type=MEDIA_TYPES[form], headers=told)
