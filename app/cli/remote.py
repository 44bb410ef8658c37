"""What `continue` and `score` share: where to compute, here or on a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from app.errors import UserError

BundleFolder = Annotated[
    Path | None, typer.Option("--bundle", help="folder of weights; default: as `config show` says; not with --url")
]
Url = Annotated[str | None, typer.Option("--url", help="ask this server instead of computing here")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="WHISPERGPT_API_KEY", show_envvar=False, help="key for --url [WHISPERGPT_API_KEY]")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda or cuda:N (experimental: never run by us); default: as `config show` says; not with --url"
    ),
]
Threads = Annotated[int | None, typer.Option(help="cores to compute with; default: 1; not with --url")]


def check_place(url: str | None, local: Mapping[str, Any]) -> str | None:
    """The server's address, whole. Raises UserError when what ``local`` names was asked of a server.

    A flag that changes nothing would let its user believe that it did.
    """
    if url is None:
        return None
    given = [f"--{name}" for name, value in local.items() if value is not None]
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise UserError(f"{', '.join(given)} {verb} for computing here: the server at --url has settings of its own")
    from app.client.calls import server_url

    return server_url(url)
