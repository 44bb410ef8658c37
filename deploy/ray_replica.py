"""A replica on Ray Serve: the application with one engine, and what `whisper-gpt serve` does around it."""

import asyncio
import logging.config
import time
from typing import Any

import ray
from fastapi import FastAPI

from app.cli.options import pick_device
from app.engine.engine import Engine
from app.errors import UserError
from app.main import UNREAD, create_app, drain
from app.server.connection import descriptors
from app.server.logs import configuration
from app.server.memory import keep_little
from app.settings import load_settings, warn_of_unknown_names
from deploy.ray_config import BESIDE
from deploy.ray_ingress import Ingress

LOOK_SECONDS = 0.5  # between two looks at whether Ray ends this replica
log = logging.getLogger("whispergpt")


class Replica:
    """What `serve.ingress` wraps. Ray makes it in an actor of its own.

    Args:
        settings: of the server, above those of the node's environment.
        ongoing: requests that Ray hands to a replica at most.
    """

    def __init__(self, settings: dict[str, Any], ongoing: int) -> None:
        given = load_settings(**settings)
        logging.config.dictConfig(configuration(given))
        warn_of_unknown_names()
        keep_little()
        descriptors()
        self._settings = given.model_copy(update={"device": pick_device(given.device)})
        self._ongoing = ongoing
        self._app: FastAPI = create_app(self._settings)
        self._watch: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Ingress:  # Ray's name
        self._watch = asyncio.get_running_loop().create_task(self._drain_when_ended())
        return Ingress(self._app)

    @property
    def _engine(self) -> Engine | None:
        return getattr(self._app.state, "engine", None)

    async def check_health(self) -> None:
        """Raises when another replica is the only remedy, upon which Ray makes one."""
        engine = self._engine
        if engine is None:
            return
        if not engine.alive:
            raise RuntimeError("inference is dead")
        needed = engine.admission.permits + UNREAD + BESIDE
        if self._ongoing < needed:
            raise UserError(f"max_ongoing_requests: {self._ongoing} are fewer than {needed}, which this model wants")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `deploy.ray_autoscaling` goes by."""
        registry = self._app.state.metrics.registry
        return {
            name: float(registry.get_sample_value(f"whispergpt_requests_{name}") or 0.0)
            for name in ("running", "waiting")
        }

    async def _drain_when_ended(self) -> None:
        """As after SIGTERM under uvicorn: what runs has `drain_seconds`, and then ends with what it has made.

        Ray lets a replica that it ends go on with what it has in hand, for ever if that takes as long, and then kills
        it. It tells its class only when nothing is in hand any more; so this looks where Ray itself looks.

        Requests still come for a moment, from proxies that have not heard yet: they are taken up, for
        `drain_grace_seconds`. Behind the port of a single server they are refused, and a balancer knows why; here each
        would be an error that nobody had to see.
        """
        while not ended():  # noqa: ASYNC110  # nobody sets an event
            await asyncio.sleep(LOOK_SECONDS)
        began = time.monotonic()
        log.info("draining: Ray ends this replica")
        await asyncio.sleep(min(self._settings.drain_grace_seconds, self._settings.drain_seconds))
        if self._engine is not None:
            await drain(self._engine, max(self._settings.drain_seconds - (time.monotonic() - began), 0.0))


def ended() -> bool:
    """Whether Ray has told this replica to end; False where Ray keeps it elsewhere than in 2.60.

    There is no public way to ask. `make test-ray` fails when this one is no way any more; draining is then what Ray
    does by itself, a kill after `graceful_shutdown_timeout_s`.
    """
    actors = getattr(ray._private.worker.global_worker, "actors", {})
    found = [getattr(one, "_replica_impl", None) for one in actors.values()]
    return any(getattr(one, "_shutting_down", False) for one in found)
