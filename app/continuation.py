"""What POST /continue does between its form and its answer."""

import base64
import secrets
import time
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.audio_io import Samples, limit
from app.encoders import MEDIA_TYPES, encode
from app.engine import Continuation, ContinueJob, Engine
from app.errors import AudioTooLong, AudioTooShort, InvalidParameter
from app.forms import Upload
from app.schemas import AudioBody, Choice, ContinueForm, ContinueResponse, PromptBody, Timings
from app.settings import Settings
from app.work import deadline, decoded
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, MEL_LEFT_SAMPLES, SAMPLE_RATE_HZ, frames_for_seconds, frames_in
from model.sampling import SamplingOptions
from model.score import MIN_FRAMES, TooShortError

JOINT_SAMPLES = 240  # 10 ms of crossfade, inside the prompt: the length of neither part changes
SEED_BITS = 48  # exact in JavaScript's numbers, so that a seed survives a browser


@dataclass(frozen=True)
class Answer:
    """A continuation with what the response needs beside it."""

    form: ContinueForm
    seed: int
    prompt: Samples
    made: Continuation
    arrived: float

    def audio(self, index: int) -> Samples:
        """The samples of a choice, the prompt's own in front when asked for."""
        samples: Samples = self.made.samples[index]
        return join(self.prompt, self.made.tail, samples) if self.form.include_prompt else limit(samples)

    def nll(self, index: int) -> float:
        return -float(self.made.logprobs[index].astype(np.float64).mean())


def join(prompt: Samples, tail: Samples, made: Samples) -> Samples:
    """The prompt's own whole frames and then what was made, limited.

    The last 10 ms of the prompt fade into the codec's version of them, which the made samples go on from.
    """
    own = prompt[: frames_in(len(prompt)) * HOP_SAMPLES].copy()
    fade = (0.5 - 0.5 * np.cos(np.pi * (np.arange(JOINT_SAMPLES) + 0.5) / JOINT_SAMPLES)).astype(np.float32)
    own[-JOINT_SAMPLES:] = own[-JOINT_SAMPLES:] * (1 - fade) + limit(tail[-JOINT_SAMPLES:]) * fade
    return np.concatenate([own, limit(made)])


async def continue_audio(request: Request, upload: Upload[ContinueForm]) -> Answer:
    """Decode the prompt and have it continued. Raises ServiceError."""
    settings: Settings = request.app.state.settings
    engine: Engine = request.app.state.engine
    form = upload.form
    if len(upload.files) != 1:
        raise InvalidParameter("file: send one file", "file")
    if form.seconds > settings.max_seconds:
        raise InvalidParameter(f"seconds: at most {settings.max_seconds:g}", "seconds")
    if form.prompt_start > settings.max_score_seconds:  # what is skipped is decoded, too
        raise AudioTooLong(f"prompt_start: at most {settings.max_score_seconds:g} s into a file", "prompt_start")
    arrived, until = deadline(request, settings, form.timeout_seconds)
    prompt = await decoded(
        request, upload.files[0], until, settings.max_prompt_seconds, form.prompt_start, form.prompt_end
    )
    seed = secrets.randbits(SEED_BITS) if form.seed is None else form.seed
    options = SamplingOptions(form.temperature, form.top_k, form.top_p, seed)
    job = ContinueJob(arrived, until, prompt, frames_for_seconds(form.seconds), options, form.n)
    try:
        made = await engine.submit(job)
    except TooShortError as error:
        shortest = MIN_FRAMES * HOP_SAMPLES / SAMPLE_RATE_HZ
        raise AudioTooShort(f"a prompt needs {shortest:.2f} s or more", "file") from error
    return Answer(form, seed, prompt, made, arrived)


def response(request: Request, answer: Answer) -> Response:
    """The answer as JSON, or as bare audio with its numbers in headers. Not for the event loop: it encodes audio."""
    made, seed, engine = answer.made, answer.seed, request.app.state.engine
    prompt_nll = -float(made.prompt_logprobs.astype(np.float64).mean())
    name = f"cont-{request.state.request_id}"
    if answer.form.response_format != "json":
        headers = {
            "x-whispergpt-id": name,
            "x-whispergpt-seed": str(seed),
            "x-whispergpt-nll": f"{answer.nll(0):.6f}",
            "x-whispergpt-prompt-nll": f"{prompt_nll:.6f}",
            "x-whispergpt-tokens": str(len(made.tokens[0])),
            "x-whispergpt-finish-reason": made.finish_reason,
            "x-whispergpt-sample-rate": str(SAMPLE_RATE_HZ),
        }
        form = answer.form.audio_format
        return Response(encode(answer.audio(0), form), media_type=MEDIA_TYPES[form], headers=headers)
    choices = []
    for index in range(len(made.tokens)):
        audio = answer.audio(index)
        nll = answer.nll(index)
        choices.append(
            Choice(
                index=index,
                audio=AudioBody(format="wav", data=base64.b64encode(encode(audio, "wav")).decode()),
                seconds=len(audio) / SAMPLE_RATE_HZ,
                tokens=made.tokens[index].tolist(),
                logprobs=made.logprobs[index].tolist(),
                nll=nll,
                perplexity=float(np.exp(nll)),
                finish_reason=made.finish_reasons[index],
            )
        )
    frames = len(made.prompt_logprobs)
    body = ContinueResponse(
        id=name,
        created=int(time.time()),
        model=engine.bundle.name,
        seed=seed,
        sample_rate=SAMPLE_RATE_HZ,
        frame_rate=FRAME_RATE_HZ,
        prompt=PromptBody(seconds=frames / FRAME_RATE_HZ, tokens=frames, nll=prompt_nll),
        choices=choices,
        timings=Timings(
            queue_seconds=made.queue_seconds,
            prefill_seconds=made.prefill_seconds,
            first_audio_seconds=made.first_audio_seconds,
            total_seconds=time.monotonic() - answer.arrived,
            real_time_factor=made.made_seconds / max(made.loop_seconds, 1e-9),
        ),
    )
    return JSONResponse(body.model_dump())


assert JOINT_SAMPLES <= MEL_LEFT_SAMPLES and JOINT_SAMPLES <= MIN_FRAMES * HOP_SAMPLES
