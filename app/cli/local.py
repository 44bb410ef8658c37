"""What `continue` and `score` share: where to compute, and with which bundle."""

from pathlib import Path
from typing import Annotated

import typer

from app.audio.decode import hear
from app.audio.formats import Samples
from app.cli.config import settings_from
from app.cli.options import errors, limit_threads, pick_device
from model.checkpoint import Bundle, load_bundle

BundleFolder = Annotated[
    Path | None, typer.Option("--bundle", help="Folder of weights; default: as `config show` says")
]
Url = Annotated[str | None, typer.Option("--url", help="Ask this server instead of computing here")]
ApiKey = Annotated[str | None, typer.Option(envvar="WHISPERGPT_API_KEY", help="Key for the server at --url")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: as `config show` says")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: 1")]
MAX_SECONDS = 48 * 3600.0  # here the only limit is memory


def load(bundle: Path | None, device: str | None, threads: int | None) -> Bundle:
    """The bundle that the flags, or the server's settings, name."""
    settings = settings_from(bundle=bundle, device=device, threads=threads)
    limit_threads(threads or 1)  # one request: its matrices are too small to be shared out
    return load_bundle(settings.bundle, pick_device(settings.device), settings.codec)


def read(path: Path, start_seconds: float = 0.0, end_seconds: float | None = None) -> Samples:
    """A file, or a part of it, as the server would read it: (N,) at 24 kHz. Raises ServiceError."""
    with path.open("rb") as file:
        heard = hear(file, MAX_SECONDS, start_seconds, end_seconds)
    for warning in heard.warnings:
        errors.print(f"{path}: {warning.message}", style="yellow", markup=False, soft_wrap=True)
    return heard.samples
