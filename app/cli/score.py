"""`whisper-gpt score`: here, or against a server with `--url`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli.interrupt import handled, stop_at_once
from app.cli.options import console, errors, existing_files, form_options, show_warnings
from app.cli.remote import ApiKey, BundleFolder, Device, Threads, Url, check_place
from app.scores.schemas import ScoreForm

SCORE_FIGURES = {"nll": "nll", "perplexity": "perplexity", "bits_per_second": "bits/s", "accuracy": "accuracy"}
WINDOW_FIGURES = {"nll": "window nll", "normalised_nll": "normalised"}
NOT_OPTIONS = ("response_format", "timeout_seconds")  # a table, or --json


def _show_scores(results: list[dict[str, Any]]) -> None:
    """A table of what was scored; what was not goes to standard error, a line each."""
    from rich.markup import escape
    from rich.table import Column, Table

    local = {key: name for key, name in WINDOW_FIGURES.items() if any(key in one.get("window", {}) for one in results)}
    shown = {"nll": "nll"} if local else SCORE_FIGURES  # not more than a terminal's 80 columns hold
    names = ("seconds", "tokens", *shown.values(), *local.values())
    table = Table("clip", *(Column(name, justify="right") for name in names))
    for one in results:
        if "error" in one:
            continue
        figures = [f"{one[name]:.3f}" for name in shown] + [f"{one['window'][name]:.3f}" for name in local]
        table.add_row(escape(one["filename"]), f"{one['seconds']:.2f}", str(one["tokens"]), *figures)
    if table.row_count:
        console.print(table)


@form_options(ScoreForm, leave_out=NOT_OPTIONS)
def score_command(
    clips: Annotated[list[Path], typer.Argument(help="audio files")],
    form: ScoreForm,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, as the server answers, instead of a table")] = False,
    mel: Annotated[
        Literal["real", "decoded", "masked"] | None,
        typer.Option(help="mel of the clip (the default), of its decoded codes, or none; not with --url"),
    ] = None,
    bundle: BundleFolder = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Tell how likely clips are.

    When one of the clips cannot be scored, the others are, and the exit code is 1.
    """
    url = check_place(url, {"mel": mel, "bundle": bundle, "device": device, "threads": threads})
    existing_files(clips)
    if url is not None:
        from app.cli.progress import progress_bar
        from app.client.client import post

        with progress_bar(f"waiting for {url}", None, ""):
            body = post(url, "/score", clips, form.model_dump(), api_key).json()
    else:
        with handled(stop_at_once):
            from app.cli.local import load, score_clips

        loaded, _ = load(bundle, device, threads)
        results = score_clips(loaded, clips, form, mel or "real")
        body = {"object": "audio.score", "model": loaded.name, "results": results}
    if as_json:
        typer.echo(json.dumps(body))
    else:
        _show_scores(body["results"])
    for one in body["results"]:
        show_warnings(one["filename"], one.get("warnings"))
    bad = [one for one in body["results"] if "error" in one]
    for one in bad:
        errors.print(f"{one['filename']}: {one['error']['message']}", style="red", markup=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)
