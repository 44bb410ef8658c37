"""`whisper-gpt serve` and `whisper-gpt config`: the server's settings, one name for flag, environment and file."""

import asyncio
import copy
import inspect
import json
import logging
import os
import socket
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import uvicorn
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from rich.table import Table

from app.cli.options import FriendlyGroup, UserError, console, errors, pick_device
from app.main import END_SECONDS, create_app, drain
from app.server.responses import connection
from app.settings import PREFIX, Settings, load_settings, unknown_names
from model.checkpoint import load_bundle

config = typer.Typer(cls=FriendlyGroup, no_args_is_help=True, help="Show or check the server's settings.")
START_FAILED = 3  # uvicorn's own exit code for it
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


def _flag_type(field: FieldInfo) -> Any:
    """The type that a flag takes for a setting: secrets are typed as text."""
    kind = field.annotation
    if kind == list[SecretStr]:
        return list[str]
    if get_origin(kind) is Literal:
        return kind
    plain = [part for part in get_args(kind) if part is not type(None)]
    return plain[0] if plain else kind


def settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one flag a setting, before its own options; the command gets the settings."""

    def run(config: Path | None, **flags: Any) -> None:
        command(settings_from(config, **{name: value for name, value in flags.items() if value not in (None, [])}))

    parameters = [inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)]
    for name, field in Settings.model_fields.items():
        default = "weights/default" if name == "bundle" else shown(field.get_default(call_default_factory=True))
        help_text = f"{field.description} ({PREFIX}{name.upper()}; default: {default})"
        flag = f"--{name.replace('_', '-')}"
        names = [f"{flag}/--no-{flag[2:]}"] if field.annotation is bool else [flag]
        annotation: Any = Annotated[_flag_type(field) | None, typer.Option(*names, help=help_text)]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    run.__doc__ = command.__doc__
    return run


def shown(value: Any) -> str:
    """A setting as a person reads it; secrets stay hidden."""
    if isinstance(value, list):
        return f"{len(value)} set" if value else "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def no_fault(record: logging.LogRecord) -> bool:
    """Keeps a request that the shutdown cut off out of the log of faults: uvicorn takes its cancelling for one."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def page_address(settings: Settings) -> str:
    """Where a browser on this machine finds the page."""
    anywhere = settings.host in ("0.0.0.0", "::", "")  # compared, not bound
    host = "localhost" if anywhere else f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/"


class Server(uvicorn.Server):
    """uvicorn's server; its application hears of the shutdown when it begins.

    uvicorn itself tells the application when all connections are closed: too late to end what keeps them open.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state: Any = self.config.app
        draining = asyncio.create_task(drain(state.state.engine, state.state.settings.drain_seconds))
        await super().shutdown(sockets)
        draining.cancel()
        await asyncio.wait([draining])


@settings_flags
def serve_command(settings: Settings) -> None:
    """Serve /continue and /score over HTTP."""
    if not (settings.bundle / "config.json").exists():
        raise UserError(f"no bundle in {settings.bundle}; name one with --bundle or {PREFIX}BUNDLE")
    bundle = load_bundle(settings.bundle, pick_device(settings.device), settings.codec)  # before the port is taken
    logs = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["loggers"]["whispergpt"] = {"handlers": ["default"], "level": settings.log_level.upper(), "propagate": False}
    logging.getLogger("uvicorn.error").addFilter(no_fault)
    if settings.port:  # else it is not known yet
        console.print(
            f"the page, as soon as the server is ready: {page_address(settings)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    how = uvicorn.Config(
        create_app(settings, bundle),
        host=settings.host,
        port=settings.port,
        http=connection(settings.send_timeout_seconds),
        log_config=logs,
        log_level=settings.log_level.lower(),
        timeout_graceful_shutdown=round(settings.drain_seconds + END_SECONDS),  # connections that last are cut then
        server_header=False,
    )
    server = Server(how)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise typer.Exit(START_FAILED)


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
