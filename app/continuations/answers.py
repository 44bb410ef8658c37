"""What a continuation is answered with: JSON, bare audio with its numbers in headers, or an error."""

import base64
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.audio.encode import encode
from app.audio.formats import MEDIA_TYPES
from app.audio.mixing import join, limit
from app.audio.notices import Notice, header
from app.audio.samples import Samples
from app.continuations.schemas import (
    AudioBody,
    Choice,
    ChoiceSummary,
    ContinuationSummary,
    ContinueForm,
    ContinueResponse,
    PromptBody,
    Timings,
)  # fmt: skip
from app.engine.requests import ContinueRequest, GenerationResult
from app.prompts.service import owner_of
from app.prompts.store import Kept, Store, new_id
from app.server.limits import client_of
from app.server.logs import note
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ


@dataclass(frozen=True)
class ContinuationRequest:
    """A request to continue, checked and decoded."""

    form: ContinueForm
    engine_request: ContinueRequest
    own: Samples  # (N,): the prompt's own samples, none when they are not to be in the answer
    warnings: tuple[Notice, ...]  # what is to be told of the prompt's file
    model: str  # its name; the request itself lets go of it
    identity: str
    id: str = field(default_factory=partial(new_id, "continuation"))  # of the answer, and of its kept end

    def stage(self) -> str:
        """What the request waits for, for the count of those who leave."""
        return "send" if self.engine_request.stage == "done" else self.engine_request.stage


def mean_nll(logprobs: np.ndarray) -> float:
    """Minus the mean of (T,) log-probabilities, nats a token."""
    return -float(logprobs.astype(np.float64).mean())


def headers(asked: ContinuationRequest, prompt_logprobs: np.ndarray) -> dict[str, str]:
    """What bare audio cannot tell, as far as it is known when the first byte is sent."""
    return {
        "x-whispergpt-id": asked.id,
        "x-whispergpt-seed": str(asked.engine_request.options.seed),
        "x-whispergpt-prompt-nll": f"{mean_nll(prompt_logprobs):.6f}",
        "x-whispergpt-prompt-tokens": str(len(prompt_logprobs)),
        "x-whispergpt-sample-rate": str(SAMPLE_RATE_HZ),
        **header(asked.warnings),
    }


def timings(asked: ContinuationRequest, result: GenerationResult, first_audio_seconds: float) -> Timings:
    """Where the time of a request went, up to now."""
    return Timings(
        queue_seconds=result.queue_seconds,
        prefill_seconds=result.prefill_seconds,
        first_audio_seconds=first_audio_seconds,
        total_seconds=time.monotonic() - asked.engine_request.arrived,
        real_time_factor=result.generated_seconds / max(result.loop_seconds, 1e-9),
    )


def keep(request: Request, asked: ContinuationRequest, result: GenerationResult) -> None:
    """Keeps where a continuation ended, as soon as it has: its answer may wait long for its client."""
    if result.ends:
        store: Store = request.app.state.prompts
        kept = Kept(list(result.ends), np.zeros(0, np.float32), asked.warnings, asked.model, asked.identity)
        store.keep("continuation", owner_of(request), asked.id, kept, client_of(request))
        result.ends.clear()


def finished(
    request: Request, asked: ContinuationRequest, result: GenerationResult, first_audio_seconds: float
) -> None:
    """The request's line in the log tells of its answer."""
    spent = timings(asked, result, first_audio_seconds).model_dump(exclude={"total_seconds"})
    note(request, made_audio_seconds=result.generated_seconds, finish_reason=result.finish_reason, **spent)


def server_timing(spent: Timings) -> dict[str, str]:
    """The same for a browser's network panel (W3C Server Timing), in ms."""
    parts = {"queue": spent.queue_seconds, "prefill": spent.prefill_seconds, "first-audio": spent.first_audio_seconds,
             "total": spent.total_seconds}  # fmt: skip
    return {"server-timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in parts.items())}


def summary(
    request: Request, asked: ContinuationRequest, result: GenerationResult, first_audio_seconds: float
) -> ContinuationSummary:
    """The numbers of an answer: all of it but the audio."""
    frames = len(result.prompt_logprobs)
    own_frames = frames if asked.form.include_prompt else 0
    choices = []
    for index in range(len(result.tokens)):
        nll = mean_nll(result.logprobs[index])
        choices.append(
            ChoiceSummary(
                index=index,
                seconds=(own_frames + len(result.tokens[index])) / FRAME_RATE_HZ,
                tokens=result.tokens[index].tolist(),
                logprobs=result.logprobs[index].tolist(),
                nll=nll,
                perplexity=float(np.exp(nll)),
                finish_reason=result.finish_reasons[index],
            )
        )
    return ContinuationSummary(
        id=asked.id,
        created=int(time.time()),
        model=asked.model,
        seed=asked.engine_request.options.seed,
        sample_rate=SAMPLE_RATE_HZ,
        frame_rate=FRAME_RATE_HZ,
        prompt=PromptBody(seconds=frames / FRAME_RATE_HZ, tokens=frames, nll=mean_nll(result.prompt_logprobs)),
        choices=choices,
        timings=timings(asked, result, first_audio_seconds),
        warnings=list(asked.warnings) or None,
    )


def whole_answer(request: Request, asked: ContinuationRequest, result: GenerationResult) -> Response:
    """The answer as JSON, or as bare audio with its numbers in headers. Not for the event loop: it encodes audio."""

    def audio(index: int) -> Samples:
        samples: Samples = result.samples[index]
        return join(asked.own, result.tail, samples) if asked.form.include_prompt else limit(samples)

    form = asked.form.response_format
    if form == "json":
        numbers = summary(request, asked, result, result.first_audio_seconds)
        choices = []
        for choice in numbers.choices:
            data = base64.b64encode(encode(audio(choice.index), "wav")).decode()
            choices.append(Choice(**choice.model_dump(), audio=AudioBody(format="wav", data=data)))
        body = ContinueResponse(**numbers.model_dump(exclude={"choices"}, exclude_none=True), choices=choices)
        return JSONResponse(body.model_dump(exclude_none=True), headers=server_timing(numbers.timings))
    told = headers(asked, result.prompt_logprobs) | {
        "x-whispergpt-nll": f"{mean_nll(result.logprobs[0]):.6f}",
        "x-whispergpt-tokens": str(len(result.tokens[0])),
        "x-whispergpt-finish-reason": result.finish_reason,
    }
    told |= server_timing(timings(asked, result, result.first_audio_seconds))
    return Response(encode(audio(0), form), media_type=MEDIA_TYPES[form], headers=told)
