"""What a deployment on Ray Serve can be told, and what is refused: every name is one of ours, and one that nobody reads
is an error.

Ray's own schema of `serve deploy` and `serve run` files leaves out what it does not know, on every level.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.main import END_SECONDS, UNREAD
from app.settings import Settings, load_settings

SLOTS = {"cpu": 32, "cuda": 64}  # the most that an engine makes for itself, a set of them; see `default_slots`
BESIDE = 64  # requests that need no permit and are under way: probes, refusals, pages
MORE_SECONDS = 10.0  # to end a replica, beyond what draining may take
NOT_OURS = {"host", "port", "processes"}  # settings: Ray's proxies listen, and its replicas are the processes


def wrong(error: ValidationError) -> str:
    """Each name, and what is wrong with it, without what was given."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())


class Strict(BaseModel):
    """Refuses names that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # keys of clients may be in there


class Replicas(Strict):
    """How many there are, and what makes them more or fewer.

    Both targets are of one replica: as many are wanted as bring all below them, as the Helm chart's autoscaler has it.
    """

    min: int = Field(1, ge=1, description="replicas that are always there")
    max: int = Field(1, ge=1, description="replicas at most; as `min`: their number never changes")
    running: float = Field(24.0, gt=0, description="requests of a replica that are computed, above which more are made")
    waiting: float = Field(1.0, gt=0, description="and of those that wait")
    up_seconds: float = Field(30.0, ge=0, description="for which more are wanted, before they are made")
    down_seconds: float = Field(300.0, ge=0, description="for which fewer are wanted, before one goes")
    look_back_seconds: float = Field(30.0, gt=0, description="over which what replicas tell is averaged")

    @model_validator(mode="after")
    def _in_order(self) -> "Replicas":
        if self.max < self.min:
            raise ValueError(f"max is {self.max}, below min, {self.min}")
        return self


class Resources(Strict):
    """What Ray sets aside for one replica; it holds nobody to it."""

    cpus: float | None = Field(None, ge=0, description="cores; by default `threads` of the settings")
    gpus: float = Field(0.0, ge=0, description="of a GPU: a half lets two replicas share one")
    memory_mib: int = Field(2560, ge=0, description="the most that the default limits of requests allow")
    named: dict[str, float] = Field({}, description="resources that nodes were given by name")


class RayConfig(Strict):
    """The arguments of `deploy.ray_serve:application`."""

    settings: dict[str, Any] = Field({}, description="of the server, by their names; above a node's own environment")
    replicas: Replicas = Replicas()
    resources: Resources = Resources()
    max_ongoing_requests: int | None = Field(
        None, ge=1, description="that Ray hands to a replica; by default more than it would ever take"
    )
    max_queued_requests: int = Field(
        64, ge=0, description="that wait in one of Ray's proxies, when no replica takes one"
    )
    retry_after_seconds: float = Field(5.0, ge=0, description="told with the 429 of those beyond")
    health_seconds: Annotated[float, Field(gt=0)] = Field(
        5.0, description="between two looks at whether a replica serves"
    )
    max_surge_percent: int = Field(0, ge=0, le=100, description="replicas beyond their number while they are replaced")

    @field_validator("settings")
    @classmethod
    def _known(cls, given: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(given.keys() - (Settings.model_fields.keys() - NOT_OURS))
        if unknown:
            hint = "; Ray's proxies listen, and its replicas are the processes" if set(unknown) & NOT_OURS else ""
            raise ValueError(f"no settings of a replica: {', '.join(unknown)}{hint}")
        try:
            load_settings(**given)
        except ValidationError as error:
            raise ValueError(wrong(error)) from None  # its own words would tell what was given, keys among it
        return given

    @model_validator(mode="after")
    def _room(self) -> "RayConfig":
        if self.max_ongoing_requests is not None and self.max_ongoing_requests < self.needed:
            raise ValueError(
                f"max_ongoing_requests: {self.max_ongoing_requests} are fewer than a replica's slots, its queue, its "
                f"unread answers and a few probes, {self.needed}: the rest would wait in Ray's queue"
            )
        if self.resources.gpus and self.resolved.device == "cpu":
            raise ValueError("resources.gpus: the setting device is cpu")
        return self

    @property
    def resolved(self) -> Settings:
        """The settings as they would be on this machine."""
        return load_settings(**self.settings)

    @property
    def needed(self) -> int:
        """Requests that a replica may have in hand: permits, answers that wait for their readers, and some beside."""
        settings = self.resolved
        slots = settings.slots or SLOTS["cpu" if settings.device == "cpu" else "cuda"] * settings.threads
        rounded = -(-slots // settings.threads) * settings.threads
        return rounded + settings.queue + UNREAD + BESIDE

    @property
    def ongoing(self) -> int:
        return self.max_ongoing_requests or self.needed

    @property
    def shutdown_seconds(self) -> float:
        """After which Ray kills a replica that ends: draining has its time, and what is cut its last words."""
        settings = self.resolved
        return max(settings.drain_seconds, settings.drain_grace_seconds) + END_SECONDS + MORE_SECONDS


class Proxies(Strict):
    """`http_options` of Ray's file, those that mean something to this server."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    request_timeout_s: float | None = Field(None, gt=0)
    keep_alive_timeout_s: int = Field(5, ge=0)


class RayApplication(Strict):
    """An entry of `applications`. There is no `deployments`: what it could change is in `args`, where it is checked."""

    name: str = "whisper-gpt"
    route_prefix: Literal["/"] = "/"
    import_path: Literal["deploy.ray_serve:application"] = "deploy.ray_serve:application"
    runtime_env: dict[str, Any] = {}
    args: RayConfig = RayConfig()


class RayFile(Strict):
    """A file for `serve deploy`, as far as it is of use here."""

    proxy_location: Literal["EveryNode", "HeadOnly"] = "EveryNode"
    http_options: Proxies = Proxies()
    logging_config: dict[str, Any] = {}
    applications: list[RayApplication] = Field([RayApplication()], min_length=1, max_length=1)

    @property
    def application(self) -> RayApplication:
        return self.applications[0]


class ConfigError(ValueError):
    """A file is not what a deployment can be made of; the message tells each name and what is wrong with it."""


def read_file(path: Path) -> RayFile:
    """Reads a YAML or JSON file. Raises ConfigError, and OSError."""
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    try:
        return RayFile.model_validate({} if given is None else given)
    except ValidationError as error:
        raise ConfigError(f"{path}: {wrong(error)}") from None
