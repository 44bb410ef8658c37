"""Settings: one name each for the flag, the environment variable (``WHISPERGPT_`` + NAME) and the file."""

import json
import logging
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidatorFunctionWrapHandler, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)  # fmt: skip

from model.default_bundle import DEFAULT_BUNDLE

PREFIX = "WHISPERGPT_"
# variables of the prefix that are read elsewhere
NOT_SETTINGS = {"CONFIG", "API_KEY", "FORBID_SKIPS", "TEST_BUNDLE", "CUDA_GRAPH"}
KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("whispergpt")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(processes: int = 1) -> int:
    """A process's share of the cores, two at most: requests share them by being stepped together."""
    return max(1, min(cores() // processes, 2))


def _threads_of_each(others: dict[str, Any]) -> int:
    """By the settings before it."""
    return default_threads(others.get("processes", 1))


class NamedKey(SecretStr):
    """A key, and what it is called in logs."""

    def __init__(self, secret_value: str, name: str) -> None:
        super().__init__(secret_value)
        self.name = name


def _split_keys(given: Any) -> Any:
    """Text, as the environment and flags have it, becomes a list by its commas, or what it says as JSON."""
    if not isinstance(given, str):
        return given
    if not given.lstrip().startswith(("[", "{")):
        return [key.strip() for key in given.split(",")]
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        kind = "list" if given.lstrip().startswith("[") else "object"
        raise ValueError(f"no JSON {kind}: {error.msg} at character {error.pos + 1}") from None


class Settings(BaseSettings):
    """Everything that an operator can set. Precedence: flag, environment, file, default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    bundle: Annotated[tuple[Path, ...], NoDecode] = Field(
        (DEFAULT_BUNDLE,), description="folders of weights, or folders of these; the first is served by default"
    )
    codec: Path | None = Field(None, description="Meta's checkpoint, for a bundle that was trained on it")
    device: str = Field("cpu", description="cpu, cuda or cuda:N (experimental: never run by us)")
    processes: int = Field(
        1, ge=1, le=64, description="that serve behind the port, each with weights, slots, queue and threads of its own"
    )
    threads: int = Field(
        default_factory=_threads_of_each,
        ge=1,
        le=256,
        description="cores to compute with, of each process; more than idle cores is 10 to 20 times slower",
    )
    slots: int | None = Field(
        None, ge=1, le=4096, description="continuations computed at the same time; by default what suits the device"
    )
    codebooks: int | None = Field(None, ge=1, le=8, description="codes of a made frame: 2, 4 or 8; the bundle's number")
    queue: int = Field(16, ge=0, le=10_000, description="requests that may wait; one more gets a 429")
    max_upload_mib: float = Field(
        168.0,  # an hour, the longest clip, of 16 bits at 24 kHz: 165 MiB
        gt=0,
        description="MiB of one request's body",
    )
    max_bodies_mib: float = Field(
        256.0, gt=0, description="MiB of all bodies that are held together; max_upload_mib, if that is more"
    )
    max_compressed_mib: float = Field(64.0, gt=0, description="MiB of one file that is not WAV, AIFF, AU, CAF or W64")
    decoder_processes: bool = Field(
        True, description="decode uploads in processes of their own, which alone end when a library crashes"
    )
    max_files: int = Field(32, ge=1, description="clips in one /score request")
    max_prompt_seconds: float = Field(60.0, gt=0, description="longest prompt of /continue")
    max_score_seconds: float = Field(3600.0, gt=0, description="longest clip of /score")
    max_seconds: float = Field(30.0, gt=0, description="most that /continue generates")
    timeout_seconds: float = Field(
        300.0,  # an hour of /score took 140 s of one busy core (hybrid-4m)
        gt=0,
        description="from a request's arrival to its answer",
    )
    models_mib: float | None = Field(
        None, gt=0, description="MiB of the models that are loaded together, slots included; none = all of them"
    )
    model_idle_seconds: float | None = Field(
        None, gt=0, description="a model but the first is unloaded when nobody asked for it for so long; none = never"
    )
    prompts_mib: float = Field(
        256.0, ge=0, description="MiB of prompts and ends of continuations kept to go on from; 0 = none"
    )
    prompts_seconds: float = Field(600.0, gt=0, description="for which each of them is kept after its last use")
    max_sessions: int = Field(8, ge=0, description="live sessions that may be open at the same time; 0 = none")
    session_idle_seconds: float = Field(60.0, gt=0, description="a session ends when its client was silent for so long")
    head_timeout_seconds: float = Field(10.0, gt=0, description="for a request's head to arrive")
    upload_timeout_seconds: float = Field(60.0, gt=0, description="for a request's body to arrive")
    send_timeout_seconds: float = Field(60.0, gt=0, description="for a client to take the next part of an answer")
    drain_grace_seconds: float = Field(
        5.0, ge=0, description="to go on accepting connections after SIGTERM, for balancers to see /readyz"
    )
    drain_seconds: float = Field(30.0, ge=0, description="for running requests to end after SIGTERM")
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        [],
        description="keys that clients may use: separated by commas, a JSON list, or names and keys as a JSON "
        "object; none = open to all",
    )
    admin_keys: Annotated[list[SecretStr], NoDecode] = Field(
        [], description="keys that may load and unload models, written as api_keys are; none = nobody may"
    )
    open_metrics: bool = Field(True, description="/metrics needs no key")
    limit_requests_per_minute: int | None = Field(
        None, ge=1, description="requests of one client (a key; without keys, an address) in a minute; none = any"
    )
    limit_audio_seconds_per_minute: int | None = Field(
        None, ge=1, description="seconds of audio that one client may send and ask for in a minute; none = any"
    )
    limit_concurrent_requests: int | None = Field(
        None, ge=1, description="requests of one client that may be inside at the same time; none = any"
    )
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector (http://HOST:4318) that gets a trace of each request; extra: tracing"
    )
    log_format: Literal["text", "json"] = Field("text", description="text for people, json for machines: a line each")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")

    @field_validator("bundle", mode="before")
    @classmethod
    def _several_paths(cls, given: Any) -> Any:
        """Text is one path where there is such a one, a JSON list, or paths as PATH has them."""
        if isinstance(given, str) and given.lstrip().startswith("["):
            given = _split_keys(given)
        elif isinstance(given, str) and not Path(given).exists():
            given = [part for part in given.split(os.pathsep) if part]
        if given in ([], ()):
            raise ValueError("one folder of weights or more")
        return (given,) if isinstance(given, str | Path) else given

    @field_validator("api_keys", "admin_keys", mode="wrap")
    @classmethod
    def _named_keys(cls, given: Any, handler: ValidatorFunctionWrapHandler) -> list[SecretStr]:
        """Names stay with their keys; a key that has none is called by its place in the list."""
        given = _split_keys(given)
        if isinstance(given, dict):
            names, keys = list(given), handler(list(given.values()))
        else:
            keys = handler(given)
            names = [getattr(key, "name", f"key-{place}") for place, key in enumerate(given, 1)]
        secrets = [key.get_secret_value() for key in keys]
        if any(not secret.strip() for secret in secrets):
            raise ValueError("an empty key would let everyone in")
        if not all(isinstance(name, str) and KEY_NAME.fullmatch(name) for name in names):
            raise ValueError("the name of a key is made of letters, digits, dots, - and _: 64 at most")
        if set(names) & set(secrets):
            raise ValueError("the name of a key is shown in logs: it must not be a key")
        return [NamedKey(secret, name) for secret, name in zip(secrets, names, strict=True)]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = os.environ.get(PREFIX + "CONFIG")
        file = [TomlConfigSettingsSource(settings_cls, Path(path))] if path else []
        return (init_settings, env_settings, *file)


def unknown_names() -> list[str]:
    """Names in the environment and in the file that no setting has: a typing error, most likely."""
    known = {name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name[len(PREFIX) :].upper() not in known]
    path = os.environ.get(PREFIX + "CONFIG")
    if path and Path(path).is_file():
        in_file = tomllib.loads(Path(path).read_text())
        unknown += [f"{path}: {name}" for name in in_file if name.upper() not in known]
    return sorted(unknown)


def warn_of_unknown_names() -> None:
    """A line in the log for each; apart from `load_settings`, for a log is set up as the settings say."""
    for name in unknown_names():
        log.warning("unknown setting %s is ignored", name)


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None = not given), environment and the file that ``WHISPERGPT_CONFIG`` names.

    Raises pydantic's ValidationError on values out of range, ValueError for a missing file.
    """
    path = os.environ.get(PREFIX + "CONFIG")
    if path and not Path(path).is_file():
        raise ValueError(f"{PREFIX}CONFIG names {path}, which is no file")
    return Settings(**{name: value for name, value in flags.items() if value is not None})
