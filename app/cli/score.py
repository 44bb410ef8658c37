"""`whisper-gpt score`: here, or against a server with `--url`; a few clips, or a corpus."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli.interrupt import handled, stop_at_once
from app.cli.options import console, errors, existing_files, form_options, show_warnings
from app.cli.output import check_output, whole_file
from app.cli.plot import check_plot, plot_score
from app.cli.remote import ApiKey, BundleFolder, Device, Threads, Url, check_place
from app.corpora.ray_rounds import check_ray
from app.corpora.rows import Format as RowFormat
from app.corpora.sources import is_corpus
from app.errors import UserError
from app.scores.reports import REPORTS, Format, Scored, check_clips
from app.scores.schemas import ScoreForm
from app.server.schemas import checked
from model.constants import frames_for_seconds

SCORE_FIGURES = {"nll": "nll", "perplexity": "perplexity", "bits_per_second": "bits/s", "accuracy": "accuracy"}
WINDOW_FIGURES = {"nll": "window nll", "normalised_nll": "normalised"}
MelChoice = Literal["real", "decoded", "masked"]
# the first is here, with the table as its default; the last is of servers
NOT_OPTIONS = ("response_format", "timeout_seconds", "model")
SUFFIXES: dict[str, Format] = {
    report.suffix.lower(): name
    for name, report in REPORTS.items()
    if not report.picture  # which is --plot
}


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


def _format(wanted: Format | None, as_json: bool, out: Path | None) -> Format | None:
    """What the scores are written as, by the options or the file's name; None = a table on the terminal."""
    if wanted is None and as_json:
        wanted = "json"
    if out is None:
        return wanted
    check_output(out)
    ends = [suffix for suffix in SUFFIXES if out.name.lower().endswith(suffix)]
    by_name = SUFFIXES[max(ends, key=len)] if ends else None
    if wanted is None and by_name is None:
        names = ", ".join(report.suffix for report in REPORTS.values() if not report.picture)
        raise UserError(f"{out}: the name must end in {names}, or --response-format name the format")
    return wanted or by_name


def _with_format(form: ScoreForm, name: Format) -> ScoreForm:
    """The form with its format. Raises InvalidParameter where the two do not go together."""
    fields = {field: str(value) for field, value in form.model_dump(exclude_none=True).items()}
    return checked(ScoreForm, fields | {"response_format": name})


def _write(name: Format, scored: Scored, out: Path | None) -> None:
    """To a file, or to standard output. A file of one clip is not written where there is none."""
    if REPORTS[name].one_clip and not scored.good:
        return
    content = REPORTS[name].content(scored)
    if out is None:
        typer.echo(content, nl=not content.endswith(b"\n"))
        return
    with whole_file(out) as part:
        part.write_bytes(content)


def _wants_parquet(wanted: str | None, out: Path | None) -> bool:
    return wanted == "parquet" or (wanted is None and out is not None and out.suffix.lower() == ".parquet")


def _corpus_format(wanted: str | None, as_json: bool, out: Path | None) -> RowFormat | None:
    """What the rows of a corpus are written as; None = a table on the terminal. Raises UserError."""
    from app.corpora.rows import SUFFIXES as BY_NAME

    if wanted is None and as_json:
        wanted = "json"
    if wanted is None and out is not None:
        wanted = BY_NAME.get(out.suffix.lower())
        if wanted is None:
            raise UserError(f"{out}: a corpus is written to {', '.join(BY_NAME)}; or name it by --response-format")
    match wanted:
        case None | "jsonl" | "csv" | "parquet" | "zerospeech":
            return wanted
    raise UserError(
        f"--response-format {wanted} is of clips; a corpus has a row a clip: jsonl, csv, parquet or zerospeech"
    )


def _score_corpus(
    clips: list[Path], form: ScoreForm, name: RowFormat | None, out: Path | None,
    mel: MelChoice, bundle: Path | None, device: str | None, threads: int | None, processes: int | None,
    resume: bool, ray: bool,
) -> None:  # fmt: skip
    if resume and out is None:
        raise UserError("--resume goes on with a file: name it with --out")
    if ray:
        check_ray()
    if name is not None:
        form = _with_format(form, "jsonl" if name == "parquet" else name).as_json()
    with handled(stop_at_once):
        from app.cli.corpus import Place, score_corpus
    rows, good = score_corpus(clips, form, mel, Place(name, out, resume), bundle, device, threads, processes, ray)
    if rows:
        _show_scores(rows)
    for row in rows:
        if "error" in row:
            errors.print(f"{row['id']}: {row['error']['message']}", style="red", markup=False, soft_wrap=True)
    if not good:
        raise typer.Exit(1)


@form_options(ScoreForm, leave_out=NOT_OPTIONS)
def score_command(
    clips: Annotated[
        list[Path],
        typer.Argument(
            help="audio files; or a corpus: folders, patterns, manifests (wav.scp, .jsonl, .csv, .tsv), tars, or - for "
            "standard input (paths or JSON, one a line, or a tar)"
        ),
    ],
    form: ScoreForm,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, as the server answers, instead of a table")] = False,
    response_format: Annotated[
        Literal["json", "jsonl", "csv", "audacity", "textgrid", "zerospeech", "parquet"] | None,
        typer.Option(
            help="write this, as the server answers, instead of a table; parquet is of a corpus and needs pyarrow"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="a file to write to; without --response-format its name tells the format: .json, "
            ".jsonl, .csv, .txt (a label track), .TextGrid or .zerospeech.txt; of a corpus .jsonl, .csv or "
            ".parquet (a folder)",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="draw waveform, spectrogram and likelihood of the clip to this .png; needs the extra plot"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the file of --out: a clip that has its row is left out")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="of a corpus: score so many clips at once; default: 1; not with --url")
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="of a corpus: score on the Ray cluster that RAY_ADDRESS names, or on one of this machine; --processes "
            "is then its number of models, by default what the cluster takes; needs the extra ray; not with --url",
        ),
    ] = False,
    mel: Annotated[
        MelChoice | None,
        typer.Option(help="mel of the clip (the default), of its decoded codes, or none; not with --url"),
    ] = None,
    bundle: BundleFolder = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Tell how likely clips are.

    When one of the clips cannot be scored, the others are, and the exit code is 1. Of a corpus a row is written as
    soon as its clip is scored.
    """
    local = {"mel": mel, "bundle": bundle, "device": device, "threads": threads, "processes": processes,
             "ray": ray or None}  # fmt: skip
    url = check_place(url, local)
    if is_corpus(clips) or resume or ray or (processes or 1) > 1 or _wants_parquet(response_format, out):
        if url is not None or plot is not None:
            raise UserError(f"{'--url' if url is not None else '--plot'} takes sound files, and no corpus")
        name = _corpus_format(response_format, as_json, out)
        _score_corpus(clips, form, name, out, mel or "real", bundle, device, threads, processes, resume, ray)
        return
    existing_files(clips)
    assert response_format != "parquet"
    written = _format(response_format, as_json, out)
    if written is not None:
        check_clips(written, len(clips))
        form = _with_format(form, written).as_json()
    detail = form.detail
    if plot is not None:
        check_plot(plot)
        if len(clips) > 1:
            raise UserError(f"--plot is of one clip, and these are {len(clips)}")
        form = form.model_copy(update={"detail": "full" if detail == "full" else "tokens"})
    if url is not None:
        from app.cli.progress import progress_bar
        from app.client.calls import scoring
        from app.client.sync import Client

        with progress_bar(f"waiting for {url}", None, ""), Client(url, api_key) as client:
            body = client.send(scoring(clips, form.model_dump())).json()
    else:
        with handled(stop_at_once):
            from app.cli.local import load, score_clips

        loaded, _ = load(bundle, device, threads)
        results = score_clips(loaded, clips, form, mel or "real")
        body = {"object": "audio.score", "model": loaded.name, "results": results}
    scored = Scored(body["model"], body["results"], frames_for_seconds(form.prompt_seconds))
    if plot is not None:
        plot_score(plot, clips[0], scored)
        if detail == "summary":  # what only the picture needed
            for one in scored.good:
                del one["logprobs"], one["codes"]
    if written is not None:
        _write(written, scored, out)
    else:
        _show_scores(body["results"])
    for one in body["results"]:
        show_warnings(one["filename"], one.get("warnings"))
    bad = [one for one in body["results"] if "error" in one]
    for one in bad:
        errors.print(f"{one['filename']}: {one['error']['message']}", style="red", markup=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)
