"""`whisper-gpt serve` and `whisper-gpt config`: the server's settings, one name for flag, environment and file."""

import json
import logging.config
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from app.cli.interrupt import handled, stop_at_once
from app.cli.options import (
    FriendlyCommand,
    FriendlyGroup,
    Options,
    bounds,
    console,
    errors,
    option,
    with_options,
)  # fmt: skip
from app.errors import UserError
from app.models.catalog import folders
from app.settings import PREFIX, Settings, load_settings, unknown_names, warn_of_unknown_names

log = logging.getLogger("whispergpt")
config = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show or check the server's settings.",
)
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help=f"TOML file of settings ({PREFIX}CONFIG)")]


def settings_from(file: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags, environment and file. Raises UserError that names each bad value."""
    if file is not None:
        os.environ[PREFIX + "CONFIG"] = str(file)
    try:
        return load_settings(**flags)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']} (given: {_given(item)})" for item in error.errors()
        ]
        raise UserError("; ".join(problems)) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{os.environ[PREFIX + 'CONFIG']} is not TOML: {error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _given(item: Any) -> str:
    """A refused value as it may be shown: keys are not."""
    return "hidden" if item["loc"][:1] in {("api_keys",), ("admin_keys",)} else repr(item["input"])


def shown(value: Any) -> str:
    """A setting as a person reads it; secrets stay hidden."""
    if isinstance(value, tuple):
        return os.pathsep.join(map(str, value))
    if isinstance(value, list):
        return f"{len(value)} set" if value else "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@config.command("show", cls=FriendlyCommand)
def show_command(
    file: ConfigFile = None, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False
) -> None:
    """Show the settings that a server started here would have."""
    settings = settings_from(file)
    warn_of_unknown_names()
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    if as_json:
        plain = {
            name: [str(item) for item in value] if isinstance(value, list) else value for name, value in values.items()
        }
        plain["bundle"] = shown(settings.bundle)
        typer.echo(json.dumps(plain, indent=1, default=str))
        return
    from rich.table import Table

    table = Table("setting", "value", "meaning")
    for name, value in values.items():
        changed = name in settings.model_fields_set
        table.add_row(name, shown(value), Settings.model_fields[name].description, style="bold" if changed else None)
    console.print(table)


@config.command("validate", cls=FriendlyCommand)
def validate_command(file: ConfigFile = None) -> None:
    """Check environment and file.

    Unknown names and bad values are told, with exit code 1.
    """
    settings = settings_from(file)
    problems = [f"unknown setting: {name}" for name in unknown_names()]
    try:
        folders(settings.bundle)
    except UserError as error:
        problems.append(str(error))
    for problem in problems:
        errors.print(problem, style="red", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print("settings are valid")


def _flag_type(field: FieldInfo) -> Any:
    """The type that a flag takes for a setting: secrets are typed as text."""
    kind = field.annotation
    if kind == list[SecretStr]:
        return list[str]
    if kind == tuple[Path, ...]:
        return list[Path]
    if get_origin(kind) is Literal:
        return kind
    plain = [part for part in get_args(kind) if part is not type(None)]
    return plain[0] if plain else kind


def _log_as_json(error: UserError) -> None:
    """A line of the log that a server whose settings are wrong will not have."""
    from app.server.logs import configuration

    logging.config.dictConfig(configuration(Settings.model_construct(log_format="json")))
    log.error("%s", error)


def settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces a command's argument ``settings`` by one flag a setting, and one for a file of them."""
    flags = []
    for name, field in Settings.model_fields.items():
        alone = field.get_default(call_default_factory=True, validated_data={})
        default = "weights/default" if name == "bundle" else shown(alone)
        allowed = f"{range_}; " if (range_ := bounds(field)) else ""
        help_text = f"{field.description} [{allowed}default: {default}; {PREFIX}{name.upper()}]"
        flag = f"--{name.replace('_', '-')}"
        names = [f"{flag}/--no-{flag[2:]}"] if field.annotation is bool else [flag]
        flags.append(option(name, _flag_type(field) | None, None, *names, help=help_text))

    def make(given: Mapping[str, Any]) -> Settings:
        values = {name: given[name] for name in Settings.model_fields if given[name] not in (None, [])}
        for name in values.keys() & {"api_keys", "admin_keys"}:  # a repeated flag, each of which may hold several
            values[name] = ",".join(values[name])
        try:
            return settings_from(given["config"], **values)
        except UserError as error:
            if (given["log_format"] or os.environ.get(PREFIX + "LOG_FORMAT")) != "json":
                raise
            _log_as_json(error)
            raise typer.Exit(error.exit_code) from error

    file = option("config", Path | None, None, "--config", "-c", help=f"TOML file of settings [{PREFIX}CONFIG]")
    return with_options(command, {"settings": Options([file, *flags], make)})


@settings_flags
def serve_command(settings: Settings) -> None:
    """Serve /continue and /score over HTTP."""
    with handled(stop_at_once):
        if settings.processes > 1:
            from app.cli.supervisor import serve
        else:
            from app.cli.serve import serve
    serve(settings)
