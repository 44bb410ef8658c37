"""The FastAPI application."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from fastapi import FastAPI

from app import __version__
from app.continuations import router as continuations
from app.engine.engine import Engine
from app.metrics import Metrics
from app.models import catalog
from app.models.registry import Models
from app.models.registry import watch as watch_models
from app.prompts import router as prompts
from app.prompts.shared_store import SharedPromptStore
from app.prompts.store import PromptStore, watch
from app.scores import router as scores
from app.server.auth import Keys
from app.server.bodies import Bodies
from app.server.errors import install as install_errors
from app.server.limits import LIMITS, Limits
from app.server.memory import keep_small
from app.server.middleware import RequestMiddleware
from app.server.schemas import failures
from app.server.shared_limits import SharedLimits
from app.server.tracing import tracing_for
from app.sessions import router as sessions
from app.settings import Settings, load_settings, warn_of_unknown_names
from app.shared import Shared
from app.system import admin, docs, health, models, page
from model.checkpoint import Bundle

LAG_SECONDS = 0.25
CLIPS = 2  # clips of /score that are in memory at the same time, an hour of each at most: one scored, one decoded
DECODERS = 2  # uploads decoded at the same time; each holds at most one clip
CLIP_DECODERS = 1  # of these for /score: an hour takes seconds, and no prompt shall wait for it
ENCODERS = 2  # answers written at the same time
END_SECONDS = 5.0  # after `drain_seconds`: for what runs to end with what it has, and to be taken
UNREAD = 32  # streams that are made, hold no permit any more and wait for slow readers, each with all its samples
log = logging.getLogger("whispergpt")


async def watch_loop(metrics: Metrics) -> None:
    """Measures how late the event loop runs."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(LAG_SECONDS)
        metrics.loop_lag.observe(max(time.monotonic() - before - LAG_SECONDS, 0.0))


def work_of(engine: Engine) -> object:
    """Something else than before, if anything was done since: an hour to score is one request, and works all along."""
    return engine.admitted, time.monotonic() if engine.in_use else 0.0


async def drain(engine: Engine, seconds: float) -> None:
    """Takes no more requests, and waits until those inside have their answers, or the time is up.

    Then what runs is ended: what a continuation has made so far is its answer. Called again, it only waits for that.
    """
    engine.draining = True
    if not engine.workers.ending.is_set():
        await _emptied(engine, seconds)
    if engine.in_use:
        engine.end()
        await _emptied(engine, END_SECONDS)
    if engine.in_use:
        log.warning("%d requests were cut off by the shutdown", engine.in_use)


async def _emptied(engine: Engine, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await engine.empty.wait()


def decoder_processes(settings: Settings, metrics: Metrics) -> Any:
    """The `Decoders`; None where they are not wanted, or the system can not hand over a descriptor."""
    if not settings.decoder_processes or not hasattr(socket, "send_fds"):
        return None
    from app.server.decoders import Decoders  # not to be imported on Windows

    lost = metrics.decoders_lost
    return Decoders(DECODERS, lost=lambda when: lost.labels(when).inc(), changed=metrics.decoders.set)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the weights, run the engine, and end both."""
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    processes = app.state.processes = decoder_processes(settings, metrics)  # they start while the weights are loaded
    bundle, *more = app.state.bundles or await asyncio.to_thread(catalog.load_all, settings, settings.device)
    app.state.bundles = ()  # whoever unloads one means its memory
    metrics.build.info({"version": __version__, "model": bundle.name, **bundle.hashes})
    engine = Engine(bundle, metrics, settings.queue, settings.threads, settings.slots, settings.codebooks)
    app.state.engine = engine
    if isinstance(app.state.prompts, SharedPromptStore):
        app.state.prompts.device = bundle.device
    app.state.clips, app.state.unread = asyncio.Semaphore(CLIPS), asyncio.Semaphore(UNREAD)
    app.state.decoders, app.state.encoders = anyio.CapacityLimiter(DECODERS), anyio.CapacityLimiter(ENCODERS)
    app.state.clip_decoders = anyio.CapacityLimiter(CLIP_DECODERS)
    await asyncio.to_thread(engine.start)
    served: Models = app.state.models
    await served.begin(engine, more)
    del more
    watchers = [
        asyncio.create_task(watch_loop(metrics)),
        asyncio.create_task(watch(app.state.prompts)),
        asyncio.create_task(watch_models(served)),
        asyncio.create_task(keep_small(lambda: (work_of(engine), served.changes))),
    ]
    log.info("ready: %s on %s", ", ".join(one.name for one in served.all()), bundle.device)
    try:
        yield
    finally:
        await drain(engine, settings.drain_seconds)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await served.close()
        await asyncio.to_thread(engine.stop)
        if processes is not None:
            await asyncio.to_thread(processes.close)
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)


def create_app(settings: Settings | None = None, *bundles: Bundle, shared: Shared | None = None) -> FastAPI:
    """The application. Without ``bundles`` those of the settings are loaded at start-up.

    ``shared``: it is one of several processes that serve together.
    """
    if settings is None:
        settings = load_settings()
        warn_of_unknown_names()
    app = FastAPI(
        title="Whisper-GPT server",
        summary="Continues audio and scores audio with a hybrid audio language model.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # system/docs.py has them, so that they want a key as all routes do
        redoc_url=None,
        openapi_url=None,
        webhooks=sessions.events,
        # its spans would tell queries, in which people put keys; ours are in `app.server.tracing`
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses=failures(),
    )
    app.state.settings = settings
    app.state.metrics = metrics = Metrics()
    app.state.bundles = bundles
    app.state.keys, app.state.admin_keys = Keys(settings.api_keys), Keys(settings.admin_keys)
    app.state.models = Models(settings, metrics)
    app.state.bodies = Bodies(settings, metrics)
    app.state.shared = shared
    limited = any(getattr(settings, name) is not None for name in LIMITS)
    app.state.limits = SharedLimits(settings, metrics, shared) if shared and limited else Limits(settings, metrics)
    most_bytes, seconds = round(settings.prompts_mib * 2**20), settings.prompts_seconds
    app.state.prompts = (
        SharedPromptStore(shared, most_bytes, seconds, metrics) if shared else PromptStore(most_bytes, seconds, metrics)
    )
    app.state.sessions = sessions.Sessions(settings, metrics)
    app.state.tracing = tracing_for(settings)
    install_errors(app)
    for one in (continuations, prompts, scores, sessions, health, models, docs, page):
        app.include_router(one.router)
    if settings.admin_keys:
        app.include_router(admin.router)
    app.mount("/static", page.files)
    app.mount("/docs/files", docs.docs_files)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    return app
