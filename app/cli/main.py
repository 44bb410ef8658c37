"""The command line: `whisper-gpt serve | continue | score | train | eval | bench | config`."""

from typing import Annotated

import typer

from app import __version__
from app.cli.bench import bench_command
from app.cli.config import config
from app.cli.generate import continue_command
from app.cli.options import FriendlyGroup, console
from app.cli.score import score_command
from app.cli.serve import serve_command
from app.cli.train import eval_command, train

cli = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Continues audio and scores audio with a hybrid audio language model.",
)
cli.command("serve")(serve_command)
cli.command("continue")(continue_command)
cli.command("score")(score_command)
cli.add_typer(train, name="train")
cli.command("eval")(eval_command)
cli.command("bench")(bench_command)
cli.add_typer(config, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version")
    ] = False,
) -> None:
    """Continues audio and scores audio with a hybrid audio language model."""


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
