"""Options of the command line that come from dataclasses, and errors that read as sentences.

A field of a settings dataclass and its option share one name, one default and one line of help: the comment behind the
field.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperGroup

from app.errors import ServiceError, UserError
from model.checkpoint import BundleError
from model.codec.encodec_24khz import MetaCodecError
from model.inference.scoring import TooShortError
from model.training.corpus import DataError

console = Console()
errors = Console(stderr=True)


FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
USER_ERRORS = (UserError, ServiceError, DataError, BundleError, MetaCodecError, TooShortError, *FILE_ERRORS)


class FriendlyGroup(TyperGroup):
    """Turns the errors that a user can put right into one line on standard error and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except USER_ERRORS as error:
            errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(130) from None


def pick_device(device: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`. Raises UserError when CUDA is asked for and absent."""
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device.startswith("cuda") and not available:
        raise UserError("no CUDA device is visible to torch; use --device cpu")
    return device


def limit_threads(threads: int) -> None:
    """Threads that torch computes with; 0 keeps its own choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)


@cache
def field_comments(kind: type) -> dict[str, str]:
    """The comment behind each field of a dataclass."""
    found = re.findall(r"^\s+(\w+):[^#\n]*#\s*(.+)$", inspect.getsource(kind), re.M)
    return {name: comment.strip() for name, comment in found}


def _option(kind: type, name: str, annotation: Any, default: Any) -> inspect.Parameter:
    if typing.get_origin(annotation) is tuple:  # numbers separated by commas
        annotation, default = str, ",".join(str(value) for value in default)
    elif isinstance(annotation, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType) | None
    option = typer.Option(help=field_comments(kind).get(name), rich_help_panel=kind.__name__)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _value(annotation: Any, given: Any) -> Any:
    if typing.get_origin(annotation) is not tuple:
        return given
    item = typing.get_args(annotation)[0]
    try:
        return tuple(item(part) for part in str(given).split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{given!r}: {item.__name__} values separated by commas are wanted") from error


def dataclass_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces each parameter that is a dataclass by options, one a field; the command gets the dataclass.

    Fields of the same name in two dataclasses share one option (`seed`); the first one's default counts.
    """
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    kinds = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name not in kinds
    ]
    types_of = {name: get_type_hints(kind) for name, kind in kinds.items()}
    seen = {parameter.name for parameter in parameters}
    for name, kind in kinds.items():
        for field in fields(kind):
            if field.name not in seen:
                seen.add(field.name)
                parameters.append(_option(kind, field.name, types_of[name][field.name], field.default))

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{f.name: _value(types_of[name][f.name], given[f.name]) for f in fields(kind)})
            for name, kind in kinds.items()
        }
        plain = {name: value for name, value in given.items() if name in signature.parameters}
        command(**plain, **made)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    del run.__wrapped__
    return run


def existing(paths: list[Path]) -> list[Path]:
    """The paths, all of which exist. Raises UserError naming the first that does not."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    return paths
