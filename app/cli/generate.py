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
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Column, Table

from app.audio.decode import Samples, decode, limit
from app.audio.encode import Format, encode, parts
from app.cli.options import UserError, console, errors, existing, limit_threads, pick_device
from app.cli.serve import settings_from
from app.cli.stream import STDOUT, stream_format, write_stream
from app.client.client import post, post_stream
from app.continuations.schemas import ScoreForm
from app.continuations.service import SEED_BITS, join, opening
from app.errors import ServiceError
from app.scores.service import clip_error, result, window_of
from app.server.multipart import checked
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, frames_for_seconds
from model.inference.backend import slots_for
from model.inference.generate import generate
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.scoring import Baseline, TooShortError, WindowError, score
from model.inference.scoring import MelSource as ScoreMel
from model.inference.types import PromptState

BundleFolder = Annotated[
    Path | None, typer.Option("--bundle", help="Folder of weights; default: as `config show` says")
]
Url = Annotated[str | None, typer.Option("--url", help="Ask this server instead of computing here")]
ApiKey = Annotated[str | None, typer.Option(envvar="WHISPERGPT_API_KEY", help="Key for the server at --url")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: as `config show` says")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: 1")]
Mel = Literal["decoded", "masked"]
MAX_SECONDS = 48 * 3600.0  # here the only limit is memory
SUFFIXES: dict[str, Format] = {".wav": "wav", ".flac": "flac", ".opus": "opus", ".mp3": "mp3", ".pcm": "pcm"}
SCORE_FIGURES = {"nll": "nll", "perplexity": "perplexity", "bits_per_second": "bits/s", "accuracy": "accuracy"}
WINDOW_FIGURES = {"nll": "window nll", "normalised_nll": "normalised"}


def _load(bundle: Path | None, device: str | None, threads: int | None) -> Bundle:
    """The bundle that the flags, or the server's settings, name."""
    settings = settings_from(bundle=bundle, device=device, threads=threads)
    limit_threads(threads or 1)  # one request: its matrices are too small to be shared out
    return load_bundle(settings.bundle, pick_device(settings.device), settings.codec)


def _read(path: Path, start_seconds: float = 0.0, end_seconds: float | None = None) -> Samples:
    """A file, or a part of it, as the server would read it: (N,) at 24 kHz. Raises ServiceError."""
    with path.open("rb") as file:
        return decode(file, MAX_SECONDS, start_seconds, end_seconds)


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
        prompt = torch.from_numpy(_read(clip, prompt_start, prompt_end))
        options = SamplingOptions(temperature, top_k, top_p, seed)
        loaded = _load(bundle, device, threads)
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


def _score_here(bundle: Bundle, clips: list[Path], form: ScoreForm, mel: ScoreMel) -> list[dict[str, Any]]:
    """One result a clip, an error in its place where it cannot be scored: what the server answers."""
    results: list[dict[str, Any]] = []
    context, window = frames_for_seconds(form.prompt_seconds), window_of(form)
    for clip in track(clips, description="clips", console=errors, transient=True, disable=len(clips) == 1):
        try:
            samples = _read(clip)
            scored = score(bundle, torch.from_numpy(samples), context_frames=context, mel=mel, window=window)
        except (TooShortError, WindowError) as error:
            results.append({"filename": clip.name, "error": clip_error(error).body(None)})
            continue
        except ServiceError as error:
            results.append({"filename": clip.name, "error": error.body(None)})
            continue
        results.append(result(clip.name, scored, form))
    return results


def _show_scores(results: list[dict[str, Any]]) -> None:
    """A table of what was scored; what was not goes to standard error, a line each."""
    local = {key: name for key, name in WINDOW_FIGURES.items() if any(key in one.get("window", {}) for one in results)}
    shown = {"nll": "nll"} if local else SCORE_FIGURES  # not more than a terminal's 80 columns hold
    names = ("seconds", "tokens", *shown.values(), *local.values())
    table = Table("clip", *(Column(name, justify="right") for name in names))
    for one in results:
        if "error" in one:
            errors.print(f"{one['filename']}: {one['error']['message']}", style="red", markup=False, soft_wrap=True)
            continue
        figures = [f"{one[name]:.3f}" for name in shown] + [f"{one['window'][name]:.3f}" for name in local]
        table.add_row(escape(one["filename"]), f"{one['seconds']:.2f}", str(one["tokens"]), *figures)
    if table.row_count:
        console.print(table)


def score_command(
    clips: Annotated[list[Path], typer.Argument(help="Audio files")],
    prompt_seconds: Annotated[float, typer.Option(min=0.0, help="So much of each clip is context, not scored")] = 0.0,
    window_start: Annotated[
        float | None, typer.Option(min=0.0, help="Score a window by itself, too: where it starts, seconds")
    ] = None,
    window_seconds: Annotated[
        float | None, typer.Option(min=0.0, help="How long the window is; default: to the clip's end")
    ] = None,
    normalise_by: Annotated[
        Baseline | None, typer.Option(help="Less the window's nll by the unigram, or when read without its past")
    ] = None,
    detail: Annotated[Literal["summary", "tokens"], typer.Option(help="tokens adds logprobs and codes")] = "summary",
    as_json: Annotated[bool, typer.Option("--json", help="JSON, as the server answers, instead of a table")] = False,
    mel: Annotated[
        ScoreMel, typer.Option(help="Mel of the clip, of its decoded codes, or none; not with --url")
    ] = "real",
    bundle: BundleFolder = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Tell how likely clips are."""
    existing(clips)
    fields = {
        "prompt_seconds": prompt_seconds, "detail": detail, "window_start": window_start,
        "window_seconds": window_seconds, "normalise_by": normalise_by,
    }  # fmt: skip
    form = checked(ScoreForm, {name: str(value) for name, value in fields.items() if value is not None})
    if url is not None:
        with errors.status(f"waiting for {url}"):
            body = post(url, "/score", clips, fields, api_key).json()
    else:
        loaded = _load(bundle, device, threads)
        results = _score_here(loaded, clips, form, mel)
        body = {"object": "audio.score", "model": loaded.name, "results": results}
    if as_json:
        print(json.dumps(body))  # noqa: T201
    else:
        _show_scores(body["results"])
    if all("error" in result for result in body["results"]):
        raise typer.Exit(1)
