"""`whisper-gpt config`: the server's settings, one name for flag, environment and file."""

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from app.cli.options import FriendlyGroup, console, errors
from app.errors import UserError
from app.settings import PREFIX, Settings, load_settings, unknown_names

config = typer.Typer(cls=FriendlyGroup, no_args_is_help=True, help="Show or check the server's settings.")
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
    return "hidden" if item["loc"][:1] == ("api_keys",) else repr(item["input"])


def shown(value: Any) -> str:
    """A setting as a person reads it; secrets stay hidden."""
    if isinstance(value, list):
        return f"{len(value)} set" if value else "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@config.command("show")
def show_command(file: ConfigFile = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show the settings that a server started here would have."""
    settings = settings_from(file)
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    if as_json:
        plain = {
            name: [str(item) for item in value] if isinstance(value, list) else value for name, value in values.items()
        }
        typer.echo(json.dumps(plain, indent=1, default=str))
        return
    table = Table("setting", "value", "meaning")
    for name, value in values.items():
        changed = name in settings.model_fields_set
        table.add_row(name, shown(value), Settings.model_fields[name].description, style="bold" if changed else None)
    console.print(table)


@config.command("validate")
def validate_command(file: ConfigFile = None) -> None:
    """Check environment and file: unknown names and bad values are told, with exit code 1."""
    settings = settings_from(file)
    problems = [f"unknown setting: {name}" for name in unknown_names()]
    if not (settings.bundle / "config.json").exists():
        problems.append(f"no bundle in {settings.bundle}")
    for problem in problems:
        errors.print(problem, style="red", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print("settings are valid")
