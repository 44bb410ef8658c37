"""`whisper-gpt train codec`, `train lm`, `train track` and `eval`: from folders of audio to a bundle, and its figures.

Each run is a folder with a checkpoint, a log and a plot. The same command goes on with a run that was cut off.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.interrupt import Stopped, handled, stop_at_once
from app.cli.options import (
    FriendlyCommand,
    FriendlyGroup,
    console,
    dataclass_options,
    errors,
    existing,
    limit_threads,
    pick_device,
)  # fmt: skip
from app.cli.output import check_folder, check_output
from app.errors import UserError
from model.codec.config import CodecConfig, SourceFilterConfig
from model.default_bundle import DEFAULT_BUNDLE
from model.training.configs import CodecTraining, DecoderTraining, LMTraining, SourceFilterTraining, TokenSettings

if TYPE_CHECKING:
    from rich.table import Table

    from model.training.corpus import Corpus

train = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Train a codec, then a language model on its tokens.",
)

Folders = Annotated[list[Path], typer.Argument(help="folders of audio (what libsndfile reads) and MIDI, at any depth")]
CorpusFolder = Annotated[Path, typer.Option("--corpus", help="where the decoded audio is kept between runs")]
Out = Annotated[Path, typer.Option("--out", "-o", help="folder of the run: checkpoint.pt, log.jsonl, loss.png")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda (experimental: never run by us)")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 = torch's choice")]
Workers = Annotated[int, typer.Option(min=1, help="threads that decode audio")]
Music = Annotated[bool, typer.Option("--music", help="the audio files are music, not speech (MIDI always is)")]
Preset = Literal["hybrid-4m", "gpt-s", "gpt-l", "tiny"]


def _corpus(folders: list[Path], folder: Path, workers: int, music: bool) -> "Corpus":
    from model.training.corpus import build_corpus

    corpus = build_corpus(existing(folders), folder, workers=workers, music=music)
    shown = [
        f"{hours:.2f} h {kind} ({split})"
        for split in ("train", "valid")
        for kind in ("speech", "music")
        if (hours := corpus.hours(split, kind))
    ]
    console.print(f"corpus: {', '.join(shown)}")
    return corpus


def _check(folders: list[Path], *targets: Path, start: str = "") -> None:
    """Raises UserError for a folder that is not there, or cannot be written to: before anything is computed.

    ``start``: of --start-from. A run that had kept the name of one that is not there would refuse the right one.
    """
    existing([*folders, *([Path(start)] if start else [])])
    for folder in targets:
        check_folder(folder)


def run_all(steps: Iterator[int], out: Path) -> None:
    """Runs every step; a run that holds other settings, or is stopped, is told in one line."""
    try:
        for _ in steps:
            pass
    except KeyboardInterrupt:
        kept = (out / "checkpoint.pt").exists()
        rest = f"goes on from the last checkpoint in {out}" if kept else "begins anew: there is no checkpoint yet"
        raise Stopped(f"stopped; the same command {rest}") from None
    except ValueError as error:
        raise UserError(str(error)) from error


# Each command spells out its options, though many share them: typer reads them from the signature, in this order. And
# each imports for itself what it runs, while Ctrl-C is looked after.
@train.command("codec", cls=FriendlyCommand)
@dataclass_options
def codec_command(
    folders: Folders,
    config: SourceFilterConfig,
    training: SourceFilterTraining,
    out: Out = Path("runs/codec"),
    corpus: CorpusFolder = Path("runs/corpus"),
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    music: Music = False,
) -> None:
    """Train a codec: samples to 8 codes a frame, and back."""
    _check(folders, out, corpus, start=training.start_from)
    if config.decoder != "source_filter":
        raise UserError(f"--decoder {config.decoder}: that kind is trained by `whisper-gpt train seanet`")
    with handled(stop_at_once):
        from model.training.export import export_codec
        from model.training.train_source_filter import train_source_filter

    limit_threads(threads)
    audio = _corpus(folders, corpus, workers, music)
    run_all(train_source_filter(config, training, audio, out, pick_device(device)), out)
    console.print(f"codec: {export_codec(out)}")


# As `codec_command`, whose options and words it repeats for the reason above it.
@train.command("seanet", cls=FriendlyCommand)
@dataclass_options
def seanet_command(
    folders: Folders,
    config: CodecConfig,
    training: CodecTraining,
    out: Out = Path("runs/codec"),
    corpus: CorpusFolder = Path("runs/corpus"),
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    music: Music = False,
) -> None:
    """Train a codec of the first two editions' kind."""
    _check(folders, out, corpus, start=training.start_from)
    with handled(stop_at_once):
        from model.training.export import export_codec
        from model.training.train_codec import train_codec

    limit_threads(threads)
    audio = _corpus(folders, corpus, workers, music)
    run_all(train_codec(config, training, audio, out, pick_device(device)), out)
    console.print(f"codec: {export_codec(out)}")


@train.command("decoder", cls=FriendlyCommand)
@dataclass_options
def decoder_command(
    folders: Folders,
    training: DecoderTraining,
    codec: Annotated[Path, typer.Option(help="folder of a codec run or bundle whose encoder and codebooks stay")],
    out: Out = Path("runs/decoder"),
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="of each new weight in that bundle; the rest is the old one's")
    ] = 1.0,
    bundle: Annotated[Path | None, typer.Option(help="bundle with the same tokens that is given the decoder")] = None,
    corpus: CorpusFolder = Path("runs/corpus"),
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    music: Music = False,
) -> None:
    """Train a codec's decoder alone: the tokens stay as they are."""
    _check(folders, out, corpus)
    with handled(stop_at_once):
        from model.training.export import export_codec, find_codec, replace_decoder
        from model.training.train_decoder import train_decoder

    limit_threads(threads)
    found, _ = find_codec(codec)
    audio = _corpus(folders, corpus, workers, music)
    run_all(train_decoder(found, training, audio, out, pick_device(device)), out)
    console.print(f"codec: {export_codec(out)}")
    if bundle is not None:
        replace_decoder(bundle, out, share)
        console.print(f"bundle: {bundle} has the new decoder; its figures and MODEL_CARD.md are those of the old one")


@train.command("lm", cls=FriendlyCommand)
@dataclass_options
def lm_command(
    folders: Folders,
    training: LMTraining,
    token_settings: TokenSettings,
    codec: Annotated[
        Path | None,
        typer.Option(
            help="folder of a codec run or bundle; Meta's checkpoint file, or `meta`; "
            "default: the bundle of --start-from"
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="shape of the model; default: that of the bundle of --start-from, or hybrid-4m"),
    ] = None,
    out: Out = Path("runs/lm"),
    bundle: Annotated[Path | None, typer.Option(help="where the bundle goes; default: OUT/bundle")] = None,
    name: Annotated[str | None, typer.Option(help="name of the bundle; default: its folder's")] = None,
    licence: Annotated[
        str | None, typer.Option(help="terms of the weights, for the bundle's config; default: those of --start-from's")
    ] = None,
    corpus: CorpusFolder = Path("runs/corpus"),
    tokens: Annotated[Path | None, typer.Option(help="where the tokens are kept; default: OUT/tokens")] = None,
    device: Device = "auto",
    threads: Threads = 0,
    workers: Workers = 2,
    music: Music = False,
) -> None:
    """Train the language model on a codec's tokens.

    Makes a bundle of both. With --start-from BUNDLE it goes on with that bundle's model, on your own sound.
    """
    target = bundle or out / "bundle"
    _check(folders, out, corpus, target, tokens or out / "tokens", start=training.start_from)
    with handled(stop_at_once):
        from model.checkpoint import load_bundle
        from model.lm.config import PRESETS
        from model.training.export import export_bundle, find_codec
        from model.training.token_set import build_tokens
        from model.training.train_lm import check_start, train_lm

    limit_threads(threads)
    source = Path(training.start_from) if training.start_from and Path(training.start_from).is_dir() else None
    if source is not None and source.resolve() == target.resolve():
        raise UserError(f"{target} is the bundle to start from; name another folder with --bundle")
    start = load_bundle(source) if source is not None else None
    codec = codec or source
    if codec is None:
        raise UserError("--codec is needed: a codec run, or a bundle; --start-from BUNDLE brings its own")
    config = start.lm.config if start is not None and preset is None else PRESETS[preset or "hybrid-4m"]
    named = preset or (start.preset if start is not None else "hybrid-4m")
    found, sha256 = find_codec(codec)
    if start is not None:
        try:
            check_start(start, sha256, config)
        except ValueError as error:
            raise UserError(str(error)) from error
    audio = _corpus(folders, corpus, workers, music)
    where = pick_device(device)
    token_set = build_tokens(audio, found, sha256, token_settings, tokens or out / "tokens", where, workers)
    run_all(train_lm(config, training, token_set, out, where, codebooks=found.codebooks()), out)
    terms = licence if licence is not None else (start.licence if start is not None else "")
    made = export_bundle(
        out, codec, token_set, target, name=name or target.name, preset=named, licence=terms,
        levels=start.levels if start is not None else (),
    )  # fmt: skip
    count = made.lm.parameter_count()
    console.print(f"bundle: {target} ({named}, {count / 1e6:.2f} M parameters); write its MODEL_CARD.md")


@train.command("track", cls=FriendlyCommand)
def track_command(
    run: Annotated[Path, typer.Argument(help="folder of a run")],
    project: Annotated[str, typer.Option(help="project of the tracker")] = "whisper-gpt",
    name: Annotated[str | None, typer.Option(help="name of the run there; default: its folder's")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the run has made its last step")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between two looks at the log, with --follow")] = 30.0,
) -> None:
    """Send a run's figures to trackio.

    It reads the run's log and disturbs no training; given again it sends what is new. Needs the extra tracker.
    """
    import time
    from importlib import import_module
    from importlib.util import find_spec

    existing([run])
    if find_spec("trackio") is None:
        raise UserError('trackio is not installed: pip install -e ".[tracker]"')
    with handled(stop_at_once):
        from model.training.tracking import finished, send, settings_of

        trackio = import_module("trackio")
    settings_of(run)
    name = name or run.resolve().name
    warned = False
    try:
        while True:
            whole = finished(run)  # asked first: what comes after it was sent
            try:
                steps = send(run, trackio, project, name)
            except Exception as error:  # the package's, its database's, its server's: any
                if not follow:
                    raise UserError(f"the tracker failed: {error}") from error
                if not warned:
                    errors.print(f"the tracker failed, and is tried again: {error}", style="yellow", markup=False)
                warned, whole = True, False
            else:
                if steps:
                    console.print(f"{steps} entries sent to {project}/{name}")
            if whole or not follow:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command sends what is new") from None


def eval_command(
    paths: Annotated[list[Path], typer.Argument(help="files or folders of audio and MIDI")],
    bundle: Annotated[
        Path,
        typer.Option(
            envvar="WHISPERGPT_BUNDLE",
            show_envvar=False,
            show_default="weights/default",
            help="bundle to measure [WHISPERGPT_BUNDLE]",
        ),
    ] = DEFAULT_BUNDLE,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all figures")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many clips at most")] = None,
    max_seconds: Annotated[float, typer.Option(min=1.0, help="so much of each clip at most")] = 60.0,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Measure a bundle on audio that training never saw.

    Tells of the codec, and of the language model's likelihoods, with 95 % intervals.
    """
    existing(paths)
    if out is not None:
        check_output(out)
    with handled(stop_at_once):
        from model.checkpoint import load_bundle
        from model.training.evaluate import evaluate

    limit_threads(threads)
    report = evaluate(load_bundle(bundle, pick_device(device)), existing(paths), out, limit, max_seconds)
    console.print(codec_table(report), language_table(report))
    if out is not None:
        console.print(f"figures: {out}")


def _interval(figure: dict[str, float], digits: int = 3) -> str:
    return f"{figure['mean']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def codec_table(report: dict[str, Any]) -> "Table":
    """What `evaluate` says of the codec, one row a number of codebooks."""
    from rich.table import Table

    table = Table("codebooks", "log-mel distance", "STOI", "PESQ", title=f"codec, {report['clips']} clips")
    for count, figures in report["codec"]["codebooks"].items():
        shown = [_interval(figures[name]) if name in figures else "-" for name in ("log_mel", "stoi", "pesq")]
        table.add_row(count, *shown)
    return table


def language_table(report: dict[str, Any]) -> "Table":
    """What `evaluate` says of the language model, one row a source of mel frames."""
    from rich.table import Table

    language = report["language_model"]
    table = Table("mel", "NLL, nats", "below unigram", "perplexity", "accuracy", title="language model")
    for source in (name for name in ("real", "decoded", "masked") if name in language):
        row = language[source]
        table.add_row(
            source, _interval(row["nll"]), _interval(row["below_unigram"]), f"{row['perplexity']:.1f}",
            _interval(row["accuracy"]),
        )  # fmt: skip
    table.add_row("unigram", _interval(language["unigram_nll"]), "", "", "")
    return table
