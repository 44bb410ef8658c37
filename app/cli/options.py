"""Options that come from schemas and from dataclasses, help that fits a terminal, errors that read as sentences.

An option and its field share one name, one default, one line of help and one check: those of the API's form
(`form_options`), or of the settings of a training (`dataclass_options`).
"""

import inspect
import logging
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from app.cli.interrupt import STOPPED, Stopped, handled
from app.errors import ServiceError, UserError

if TYPE_CHECKING:  # pydantic takes a fifth of the time that `--help` may take, and not every command needs it
    from pydantic.fields import FieldInfo

    from app.server.schemas import Form

log = logging.getLogger("whispergpt")
console = Console()
errors = Console(stderr=True)

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed and the message says why, 2 wrong usage, "
    "3 the server did not start, 130 stopped with Ctrl-C."
)
FILE_ERRORS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
MODEL_ERRORS = (  # by name: a module that was never imported has raised nothing
    ("model.checkpoint", "BundleError"),
    ("model.codec.encodec_24khz", "MetaCodecError"),
    ("model.inference.scoring", "TooShortError"),
    ("model.training.corpus", "DataError"),
)


def user_errors() -> tuple[type[Exception], ...]:
    """What a user can put right."""
    of_model = [getattr(sys.modules[module], name) for module, name in MODEL_ERRORS if module in sys.modules]
    return (UserError, ServiceError, *FILE_ERRORS, *of_model)


def told(error: Exception) -> str:
    """Such an error in words."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def exit_code(error: Exception) -> int:
    """What a command ends with that such an error has stopped."""
    return error.exit_code if isinstance(error, UserError) else 1


@contextmanager
def logged(form: str) -> Iterator[None]:
    """Where the log is JSON, an error that a user can put right is a line of it; else the command line tells it."""
    try:
        yield
    except user_errors() as error:
        if form != "json":
            raise
        log.error("%s", told(error))
        raise typer.Exit(exit_code(error)) from error


class FriendlyCommand(TyperCommand):
    """Plain help of at most 80 columns that cuts no name, with options in groups and the exit codes at the end."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or plain, []).append(record)
        for title, records in ((title, records) for title, records in panels.items() if records):
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES)

    def invoke(self, ctx: Any) -> Any:
        with handled(signal.default_int_handler):
            return super().invoke(ctx)


class FriendlyGroup(TyperGroup):
    """Turns the errors that a user can put right into one line on standard error and exit code 1."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Stopped) as error:
            errors.print(str(error) or "stopped", markup=False, soft_wrap=True)
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            if not isinstance(error, user_errors()):
                raise
            errors.print(f"error: {told(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(exit_code(error)) from error


@dataclass(frozen=True)
class Options:
    """Options that stand for one argument of a command: ``make`` builds the argument from what was given."""

    parameters: list[inspect.Parameter]
    make: Callable[[Mapping[str, Any]], Any]


def option(name: str, annotation: Any, default: Any, *names: str, **more: Any) -> inspect.Parameter:
    """A parameter that typer reads as an option."""
    annotated: Any = Annotated[annotation, typer.Option(*names, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


def with_options(command: Callable[..., None], replaced: Mapping[str, Options]) -> Callable[..., None]:
    """The command with options in place of the named arguments.

    Two options of the same name are one (`seed`); the first one's default counts.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    taken = set(own) - set(replaced)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name not in replaced:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for one in replaced[name].parameters:
            if one.name not in taken:
                taken.add(one.name)
                parameters.append(one)

    def run(**given: Any) -> None:
        plain = {name: given[name] for name in own if name not in replaced}
        command(**plain, **{name: options.make(given) for name, options in replaced.items()})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    return run


def bounds(field: "FieldInfo") -> str:
    """The range that a schema's field allows, in words; empty when it has none."""
    found = {
        edge: getattr(one, edge) for one in field.metadata for edge in ("ge", "gt", "le", "lt") if hasattr(one, edge)
    }
    shown = {edge: f"{value:.15g}" if isinstance(value, float) else str(value) for edge, value in found.items()}
    if set(shown) == {"ge", "le"}:
        return f"{shown['ge']} to {shown['le']}"
    words = {"gt": "above {}", "ge": "{} or more", "le": "at most {}", "lt": "below {}"}
    return ", ".join(words[edge].format(shown[edge]) for edge in words if edge in shown)


def field_help(field: "FieldInfo") -> str:
    """A schema's line of help for its option, with the range."""
    allowed = bounds(field)
    return f"{field.description} [{allowed}]" if allowed else str(field.description)


def form_options(
    form: "type[Form]", leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's argument ``form`` by options, one a field of the API's form; the command gets it checked.

    A value that the API would refuse is refused here in the API's words (InvalidParameter).
    """
    from app.server.schemas import checked

    shown = {name: field for name, field in form.model_fields.items() if name not in leave_out}
    parameters = []
    for name, field in shown.items():
        flag = "--" + name.replace("_", "-")  # what is on unless one says otherwise needs a way to say so
        names = [flag + f"/--no-{flag[2:]}" * bool(field.default)] if field.annotation is bool else []
        parameters.append(option(name, field.annotation, field.default, *names, help=field_help(field)))

    def make(given: Mapping[str, Any]) -> Any:
        return checked(form, {name: str(given[name]) for name in shown if given[name] is not None})

    return lambda command: with_options(command, {"form": Options(parameters, make)})


def _split(annotation: Any) -> tuple[Any, str | None]:
    """Type and help of a dataclass's field: `Annotated[int, "how many"]`."""
    if typing.get_origin(annotation) is Annotated:
        kind, *notes = typing.get_args(annotation)
        return kind, next((note for note in notes if isinstance(note, str)), None)
    return annotation, None


def _field_option(panel: str, name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind, help_text = _split(annotation)
    if typing.get_origin(kind) is tuple:  # numbers separated by commas
        kind, default = str, ",".join(str(value) for value in default)
    elif isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType) | None
    return option(name, kind, default, help=help_text, rich_help_panel=panel)


def _value(annotation: Any, given: Any) -> Any:
    kind, _ = _split(annotation)
    if typing.get_origin(kind) is not tuple:
        return given
    item = typing.get_args(kind)[0]
    try:
        return tuple(item(part) for part in str(given).split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{given!r}: {item.__name__} values separated by commas are wanted") from error


def _is_table(annotation: Any) -> bool:
    """Whether a field holds rows of numbers: nothing that one types."""
    kind, _ = _split(annotation)
    return any(typing.get_origin(item) is tuple for item in typing.get_args(kind))


def _fields(kind: Any) -> Options:
    """Options for the fields of a dataclass. Tables keep their defaults."""
    hints = get_type_hints(kind, include_extras=True)
    shown = [field for field in fields(kind) if not _is_table(hints[field.name])]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", kind.__name__)  # LMTraining: LM, Training
    title = " ".join([words[0], *(word.lower() for word in words[1:])])
    return Options(
        [_field_option(title, field.name, hints[field.name], field.default) for field in shown],
        lambda given: kind(**{field.name: _value(hints[field.name], given[field.name]) for field in shown}),
    )


def dataclass_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces each argument that is a dataclass by options, one a field; the command gets the dataclass."""
    hints = get_type_hints(command, include_extras=True)
    return with_options(command, {name: _fields(kind) for name, kind in hints.items() if is_dataclass(kind)})


def show_warnings(what: object, warnings: "list[dict[str, str]] | None") -> None:
    """What an answer tells of its file beside the numbers, a line each, on standard error."""
    for warning in warnings or []:
        errors.print(f"{what}: {warning['message']}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def pick_device(device: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`. Raises UserError when CUDA is asked for and absent."""
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    if device.startswith("cuda") and not available:
        raise UserError("no CUDA device is visible to torch; use --device cpu")
    if device.startswith("cuda"):
        errors.print(f"{device} is experimental: never run by us (docs/gpu.md)", style="yellow", highlight=False)
    return device


def limit_threads(threads: int) -> None:
    """Threads that torch computes with; 0 keeps its own choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def existing(paths: list[Path]) -> list[Path]:
    """The paths, all of which exist. Raises UserError naming the first that does not."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    return paths


def existing_files(paths: list[Path]) -> list[Path]:
    """The same, and none of them is a folder."""
    for path in existing(paths):
        if path.is_dir():
            raise UserError(f"{path} is a folder; name the files in it")
    return paths
