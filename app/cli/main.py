"""The command line: `whisper-gpt serve | continue | score | train | eval | bench | export | config`.

A command's module is imported when the command is asked for, and what computes (torch, numba, the server) when it runs:
so `--help`, `--version` and the completion of a shell answer at once.
"""

import importlib
from typing import Annotated, Any

import typer
from typer.main import get_command

from app import __version__
from app.cli.interrupt import handled, run, stop_at_once
from app.cli.options import FriendlyCommand, FriendlyGroup

COMMANDS = {  # name: where it is, and the first line of its help, so that the list of commands imports none of them
    "serve": ("app.cli.config:serve_command", "Serve /continue and /score over HTTP."),
    "continue": ("app.cli.generate:continue_command", "Continue a clip."),
    "score": ("app.cli.score:score_command", "Tell how likely clips are."),
    "train": ("app.cli.train:train", "Train a codec, then a language model on its tokens."),
    "eval": ("app.cli.train:eval_command", "Measure a bundle on audio that training never saw."),
    "bench": ("app.cli.bench:bench_command", "Measure a server under load."),
    "export": ("app.cli.export:export_command", "Write the encoder and the language model's step as ONNX."),
    "config": ("app.cli.config:config", "Show or check the server's settings."),
}


def loaded(name: str) -> Any:
    """A command, or a group of them, from its module."""
    module, attribute = COMMANDS[name][0].split(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return get_command(found)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, cls=FriendlyCommand)(found)
    return get_command(app)


class LazyGroup(FriendlyGroup):
    """Its commands are names and a line of help each, until one is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        return name, found if name is None else loaded(name), rest


cli = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Continues audio and scores audio with a hybrid audio language model.",
)
for _name, (_, _help) in COMMANDS.items():
    cli.command(_name, help=_help)(lambda: None)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="tell the version")
    ] = False,
) -> None:
    """Continues audio and scores audio with a hybrid audio language model."""


def main() -> None:
    with handled(stop_at_once):
        run(cli)


if __name__ == "__main__":
    main()
