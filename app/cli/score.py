"""`whisper-gpt score`: here, or against a server with `--url`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from app.cli.local import ApiKey, BundleFolder, Device, Threads, Url, load, read
from app.cli.options import console, errors, existing
from app.client.client import post
from app.errors import ServiceError
from app.scores.schemas import ScoreForm
from app.scores.service import clip_error, result, window_of
from app.server.multipart import checked
from model.checkpoint import Bundle
from model.constants import frames_for_seconds
from model.inference.scoring import Baseline, TooShortError, WindowError, score
from model.inference.scoring import MelSource as ScoreMel

SCORE_FIGURES = {"nll": "nll", "perplexity": "perplexity", "bits_per_second": "bits/s", "accuracy": "accuracy"}
WINDOW_FIGURES = {"nll": "window nll", "normalised_nll": "normalised"}


def _score_here(bundle: Bundle, clips: list[Path], form: ScoreForm, mel: ScoreMel) -> list[dict[str, Any]]:
    """One result a clip, an error in its place where it cannot be scored: what the server answers."""
    results: list[dict[str, Any]] = []
    context, window = frames_for_seconds(form.prompt_seconds), window_of(form)
    for clip in track(clips, description="clips", console=errors, transient=True, disable=len(clips) == 1):
        try:
            samples = read(clip)
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
        loaded = load(bundle, device, threads)
        results = _score_here(loaded, clips, form, mel)
        body = {"object": "audio.score", "model": loaded.name, "results": results}
    if as_json:
        print(json.dumps(body))  # noqa: T201
    else:
        _show_scores(body["results"])
    if all("error" in result for result in body["results"]):
        raise typer.Exit(1)
