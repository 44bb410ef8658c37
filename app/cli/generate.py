"""`whisper-gpt continue` and `whisper-gpt score`: here, or against a server with `--url`."""

import base64
import io
import json
import math
import secrets
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import soundfile
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.audio.encode import encode, parts
from app.audio.formats import SUFFIXES, Samples
from app.audio.mixing import join, limit, opening
from app.cli.local import ApiKey, BundleFolder, Device, Threads, Url, load, read
from app.cli.options import console, errors, existing
from app.cli.stream import STDOUT, stream_format, write_stream
from app.client.client import post, post_stream
from app.continuations.schemas import SEED_BITS
from app.errors import UserError
from model.checkpoint import Bundle
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds
from model.inference.backend import slots_for
from model.inference.generate import generate
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.types import PromptState

Mel = Literal["decoded", "masked"]


def _frames(
    bundle: Bundle, prompt: PromptState, frames: int, options: SamplingOptions, mel: Mel
) -> Iterator[tuple[int, float, Samples]]:
    """Coarse token, its log-probability and 320 samples of each frame."""
    if mel == "decoded":  # the server's own arithmetic, so that the same seed gives the same bytes
        slots = slots_for(bundle, 1, prompt.codebooks)
        slots.join(0, prompt, options)
        for _ in range(frames):
            one = slots.step([0])
            yield int(one.codes[0, 0]), float(one.logprobs[0]), one.samples[0]
        return
    for frame in generate(bundle, prompt, frames=frames, options=options, mel=mel):
        yield int(frame.codes[0, 0]), float(frame.logprobs[0]), frame.samples[0].cpu().numpy()


def _continue_here(
    bundle: Bundle,
    prompt: torch.Tensor,
    frames: int,
    options: SamplingOptions,
    codebooks: int | None,
    mel: Mel,
    include_prompt: bool,
) -> dict[str, Any]:
    """One continuation, made with a progress bar: what the server answers, less what only a server knows."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    made = []
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("frames", total=frames)
        state = prefill(bundle, prompt, codebooks=codebooks, masked=mel == "masked")
        for frame in _frames(bundle, state, frames, options, mel):
            made.append(frame)
            bar.advance(task)
    logprobs = [frame[1] for frame in made]
    samples = np.concatenate([frame[2] for frame in made])
    samples = join(prompt.numpy(), state.tail[0].cpu().numpy(), samples) if include_prompt else limit(samples)
    nll = -sum(logprobs) / len(logprobs)
    return {
        "object": "audio.continuation",
        "model": bundle.name,
        "seed": options.seed,
        "sample_rate": SAMPLE_RATE_HZ,
        "frame_rate": FRAME_RATE_HZ,
        "prompt": {"seconds": len(state.tokens) / FRAME_RATE_HZ, "tokens": len(state.tokens), "nll": state.nll},
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


def _stream_here(
    bundle: Bundle,
    prompt: torch.Tensor,
    frames: int,
    options: SamplingOptions,
    codebooks: int | None,
    mel: Mel,
    include_prompt: bool,
) -> Iterator[Samples]:
    """Reads the prompt; then its own samples, when asked for, and those of the continuation as they are made."""
    state = prefill(bundle, prompt, codebooks=codebooks, masked=mel == "masked")
    own = [opening(prompt.numpy(), state.tail[0].cpu().numpy())] if include_prompt else []
    return chain(own, (limit(samples) for _, _, samples in _frames(bundle, state, frames, options, mel)))


def _write(body: dict[str, Any], out: Path) -> None:
    """The answer as the file's name asks: the JSON as it is, or the sound of its only choice."""
    if out.suffix.lower() == ".json":
        out.write_text(json.dumps(body) + "\n")
        return
    wav = base64.b64decode(body["choices"][0]["audio"]["data"])
    samples, _ = soundfile.read(io.BytesIO(wav), dtype="int16")
    out.write_bytes(encode(samples.astype(np.float32) / 32767, SUFFIXES[out.suffix.lower()]))


def continue_command(
    clip: Annotated[Path, typer.Argument(help="The prompt: any audio file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write: .wav, .flac, .opus, .mp3, .pcm or .json")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How much to make")] = 5.0,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 = the likeliest token always")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many tokens; 0 = all")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw among tokens of this total probability")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same bytes; default: drawn")] = None,
    prompt_start: Annotated[float, typer.Option(min=0.0, help="Where the prompt starts in the file, seconds")] = 0.0,
    prompt_end: Annotated[float | None, typer.Option(min=0.0, help="Where it ends; default: with the file")] = None,
    include_prompt: Annotated[bool, typer.Option("--include-prompt", help="Write the prompt in front")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write while it is made: .wav, .opus, .mp3, .pcm, or - for PCM to a player")
    ] = False,
    codebooks: Annotated[int | None, typer.Option(min=1, max=8, help="Quality: 2, 4 or 8; not with --url")] = None,
    mel: Annotated[
        Mel, typer.Option(help="Mel of made frames: of the decoded audio, or none; not with --url")
    ] = "decoded",
    bundle: BundleFolder = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a clip."""
    existing([clip])
    stream = stream or out == STDOUT
    if stream:
        stream_format(out)
    elif out.suffix.lower() not in (*SUFFIXES, ".json"):
        raise UserError(f"{out}: the name must end in {', '.join(SUFFIXES)} or .json")
    if not out.absolute().parent.is_dir():
        raise UserError(f"the folder {out.parent} does not exist")
    if top_p == 0.0:
        raise UserError("--top-p must be above 0")
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    fields = {
        "seconds": seconds, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        "prompt_start": prompt_start or None, "prompt_end": prompt_end, "include_prompt": include_prompt,
    }  # fmt: skip

    def here() -> tuple[Bundle, torch.Tensor, int, SamplingOptions, int | None, Mel, bool]:
        prompt = torch.from_numpy(read(clip, prompt_start, prompt_end))
        options = SamplingOptions(temperature, top_k, top_p, seed)
        loaded = load(bundle, device, threads)
        return loaded, prompt, frames_for_seconds(seconds), options, codebooks, mel, include_prompt

    if stream:
        form = stream_format(out)
        if url is None:
            write_stream(parts(form, _stream_here(*here())), out)
        else:
            asked = fields | {"stream": True, "response_format": form}
            write_stream(post_stream(url, "/continue", [clip], asked, api_key), out)
        errors.print(f"{out}: written while it was made, seed {seed}", markup=False, soft_wrap=True)
        return
    if url is None:
        body = _continue_here(*here())
    else:
        with errors.status(f"waiting for {url}"):
            body = post(url, "/continue", [clip], fields, api_key).json()
    _write(body, out)
    choice = body["choices"][0]
    made = len(choice["tokens"]) / FRAME_RATE_HZ
    console.print(f"{out}: {made:.2f} s made, seed {body['seed']}, nll {choice['nll']:.3f} nats a token")
