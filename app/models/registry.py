"""The models by their names: loaded, unloaded while nobody asks for them, and loaded again when somebody does.

For the event loop alone; what takes long is done in threads. The first model is what requests are for that name none:
it stays loaded, so that these never wait for weights.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.engine.engine import Engine
from app.engine.requests import Model
from app.errors import ModelInUse, ModelNotFound, NotReady, UserError
from app.metrics import Metrics
from app.models import catalog
from app.settings import Settings
from model.checkpoint import CONFIG, Bundle, BundleError
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ

# A request for a model that is not loaded has sent its body already: to wait for a second or two costs it less than to
# send that again. It holds a permit meanwhile, and where a step must be compiled the wait is a minute.
LOAD_WAIT_SECONDS = 20.0
RETRY_SECONDS = 5  # told to those who waited for so long
FAILED_SECONDS = 30.0  # for which a model that could not be loaded is not tried again: each try reads its weights
LOOK_SECONDS = 5.0  # between two looks for models that nobody has asked for
log = logging.getLogger("whispergpt")


class NoRoom(Exception):
    """The models in use leave no room for another."""


@dataclass(eq=False)
class Served:
    """A model that requests may name, loaded or not."""

    name: str
    folder: Path | None  # None: it was given, and cannot be loaded again
    facts: dict[str, Any] | None = None  # what there is to tell of it; from its first loading on
    model: Model | None = None
    uses: int = 0  # requests inside that are for it
    used: float = 0.0  # when the last one ended, on the clock of `Models`
    nbytes: int = 0  # when it is loaded
    leaving: bool = False  # it is told to go: no more requests
    failed: float | None = None  # when it could not be loaded
    loading: "asyncio.Task[None] | None" = None
    free: asyncio.Event = field(default_factory=asyncio.Event)  # no request is for it

    def __post_init__(self) -> None:
        self.free.set()


def created_at(folder: Path | None) -> int:
    """When a bundle's config was written here, which OpenAI's client wants to know; 0 where there is no file."""
    try:
        return int((folder / CONFIG).stat().st_mtime) if folder is not None else 0
    except OSError:  # moved away meanwhile: it is served from memory
        return 0


def facts_of(model: Model) -> dict[str, Any]:
    """What there is to tell of a model, loaded or not."""
    bundle = model.bundle
    without, whole = bundle.lm.parameter_count(), bundle.lm.parameter_count(fine=True)
    return {
        "id": bundle.name,
        "created": created_at(bundle.folder),
        "preset": bundle.preset,
        "parameters": without,
        "fine_parameters": whole - without,
        "codec": bundle.codec.config.to_dict(),
        "hashes": bundle.hashes,
        "licence": bundle.licence,
        "window_seconds": bundle.lm.config.window / FRAME_RATE_HZ,
        "sample_rate": SAMPLE_RATE_HZ,
        "frame_rate": FRAME_RATE_HZ,
        "batch_invariant": model.batch_invariant,
    }


class Models:
    """All models that are served.

    Args:
        settings: what bundles there are, how much memory they may take together, when an idle one is unloaded.
        metrics: where to count.
        clock: seconds; a test has its own.
    """

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._most_bytes = None if settings.models_mib is None else round(settings.models_mib * 2**20)
        self._served: dict[str, Served] = {}
        self._changing = asyncio.Lock()  # one is loaded or unloaded at a time: two at once would need room for both
        self._engine: Engine
        self.changes = 0  # loads and unloads, so far

    async def begin(self, engine: Engine, more: Sequence[Bundle]) -> None:
        """The engine's first model is served, and others are, loaded as far as there is room."""
        self._engine = engine
        self._add(Served(engine.bundle.name, engine.bundle.folder), engine.first)
        for bundle in more:
            served = Served(bundle.name, bundle.folder)
            self._add(served, await asyncio.to_thread(engine.load, bundle))
            if self._over(0) and served.folder is not None:
                log.info("%s waits for its first request: models_mib has no room for it", bundle.name)
                await self._end(served, "room")

    async def close(self) -> None:
        """Waits for what is being loaded."""
        loading = [served.loading for served in self._served.values() if served.loading is not None]
        await asyncio.gather(*loading)

    def all(self) -> list[Served]:
        """Those that requests may name, the first one first."""
        return [served for served in self._served.values() if not served.leaving]

    @property
    def first(self) -> Served:
        return next(iter(self._served.values()))

    def find(self, name: str | None) -> Served:
        """The model of that name; the first one without. Raises ModelNotFound."""
        if name is None:
            return self.first
        served = self._served.get(name)
        if served is None or served.leaving:
            names = ", ".join(repr(one.name) for one in self.all())
            raise ModelNotFound(f"model: there is no {name!r} here, only {names}"[:300], "model")
        return served

    @contextlib.asynccontextmanager
    async def use(self, name: str | None, until: float | None = None) -> AsyncIterator[Model]:
        """A model for a request; it stays loaded inside. One that is not loaded is, and is waited for.

        Args:
            name: None for the first one.
            until: when the request's time is up, `time.monotonic` seconds.

        Raises ModelNotFound; and NotReady when it takes too long, cannot be loaded or has no room.
        """
        async with self._used(self.find(name), until) as model:
            self._metrics.model_requests.labels(model.label).inc()
            yield model

    @contextlib.asynccontextmanager
    async def _used(self, served: Served, until: float | None = None) -> AsyncIterator[Model]:
        served.uses += 1
        served.free.clear()
        try:
            yield served.model or await self._loaded(served, until)
        finally:
            served.uses -= 1
            served.used = self._clock()
            if not served.uses:
                served.free.set()

    async def _loaded(self, served: Served, until: float | None) -> Model:
        if served.failed is not None and self._clock() - served.failed < FAILED_SECONDS:
            raise _not_ready(served, "could not be loaded a moment ago", round(FAILED_SECONDS))
        loading = served.loading = served.loading or asyncio.create_task(self._load(served))
        left = LOAD_WAIT_SECONDS if until is None else min(LOAD_WAIT_SECONDS, until - time.monotonic())
        await asyncio.wait({loading}, timeout=max(left, 0.0))  # it goes on, whoever leaves
        if served.model is not None:
            return served.model
        why = "is being loaded" if not loading.done() else "has no room now" if served.failed is None else "is broken"
        raise _not_ready(served, why, RETRY_SECONDS)

    async def _load(self, served: Served) -> None:
        began, outcome = time.monotonic(), "ok"
        try:
            async with self._changing:
                await self._make_room(served.nbytes)
                model = await asyncio.to_thread(self._made, served)
                try:
                    await self._make_room(model.nbytes)  # known by now
                except NoRoom:
                    await asyncio.to_thread(self._engine.unload, model)
                    raise
                self._add(served, model)
        except NoRoom:
            log.warning("the models in use leave no room for %s", served.name)
            outcome, served.failed = "no_room", None
        except Exception:
            log.exception("the model %s could not be loaded", served.name)
            outcome, served.failed = "failed", self._clock()
        finally:
            served.loading = None
        if served.facts is None:  # it was never here
            self._served.pop(served.name, None)
        self._metrics.model_loads.labels(self._metrics.model_label(served.name), outcome).inc()
        if outcome == "ok":
            self._metrics.model_load_seconds.observe(time.monotonic() - began)

    def _made(self, served: Served) -> Model:
        """Not for the event loop. Raises BundleError, and what making slots raises."""
        assert served.folder is not None, "it was never unloaded"
        bundle = catalog.load(self._settings, served.folder, str(self._engine.bundle.device))
        if bundle.name != served.name:
            raise BundleError(f"the bundle in {served.folder} is called {bundle.name!r} now, not {served.name!r}")
        return self._engine.load(bundle)

    def _add(self, served: Served, model: Model) -> None:
        served.model, served.facts, served.nbytes, served.failed = model, facts_of(model), model.nbytes, None
        served.used = self._clock()
        self._served[served.name] = served
        self.changes += 1
        self._metrics.model_loaded.labels(model.label).set(1)
        self._metrics.model_bytes.labels(model.label).set(model.nbytes)

    async def _end(self, served: Served, reason: str) -> None:
        """Unloads one that no request is for; `_changing` is held."""
        model, served.model = served.model, None  # who asks for it from now on has it loaded again
        assert model is not None and not served.uses
        label = model.label
        await asyncio.to_thread(self._engine.unload, model)
        self.changes += 1
        self._metrics.model_loaded.labels(label).set(0)
        self._metrics.model_bytes.labels(label).set(0)
        self._metrics.model_unloads.labels(label, reason).inc()
        log.info("unloaded %s (%s)", served.name, reason)

    def _over(self, more: int) -> bool:
        """Would so many bytes more be too many?"""
        held = sum(served.nbytes for served in self._served.values() if served.model is not None)
        return self._most_bytes is not None and held + more > self._most_bytes

    def _idle(self, seconds: float) -> list[Served]:
        """Those that may be unloaded, and that nobody has asked for in so many seconds."""
        now = self._clock()
        return [
            served
            for served in self._served.values()
            if served.model is not None and served is not self.first and served.folder is not None
            and not served.uses and now - served.used >= seconds
        ]  # fmt: skip

    async def _make_room(self, nbytes: int) -> None:
        """Unloads what was not asked for longest. Raises NoRoom, before anything is unloaded if all would not do."""
        if self._over(nbytes - sum(one.nbytes for one in self._idle(0.0))):
            raise NoRoom
        while self._over(nbytes):
            idle = self._idle(0.0)
            if not idle:
                raise NoRoom
            await self._end(min(idle, key=lambda served: served.used), "room")

    async def unload_idle(self) -> None:
        """Unloads what nobody has asked for in `model_idle_seconds`."""
        if self._settings.model_idle_seconds is None:
            return
        async with self._changing:
            while idle := self._idle(self._settings.model_idle_seconds):
                await self._end(idle[0], "idle")

    async def load(self, name: str) -> tuple[Served, bool]:
        """Has a model loaded whose bundle lies in the folders of the settings; those are looked through anew.

        Returns it, and whether it was not loaded before. Raises ModelNotFound, ModelInUse when it is about to go, and
        NotReady.
        """
        served = self._served.get(name)
        if served is None:
            folder = await asyncio.to_thread(self._folder_of, name)
            served = self._served.setdefault(name, Served(name, folder))
        if served.leaving:
            raise ModelInUse(f"the model {name!r} is about to be unloaded"[:300], "model")
        before = served.model is not None
        if not before:
            served.failed = None  # somebody may have mended it
        async with self._used(served):
            return served, not before

    def _folder_of(self, name: str) -> Path:
        """Where a bundle lies now. Raises ModelNotFound, and NotReady when one cannot be told from another."""
        try:
            found = catalog.catalog(self._settings.bundle).get(name)
        except (UserError, BundleError) as error:
            log.error("the folders of bundles cannot be read: %s", error)
            raise NotReady("the folders of bundles cannot be read; the log says why", "model") from None
        if found is None:
            raise ModelNotFound(f"model: no bundle of the name {name!r} lies here"[:300], "model")
        return found

    async def unload(self, name: str, wait_seconds: float) -> Served:
        """A model is served no longer, until it is loaded by its name. New requests for it are refused at once.

        Requests that are inside may end meanwhile, and its loading; when either is not at an end after so many seconds,
        it is served as before.
        Raises ModelNotFound; ModelInUse for these, and for the first model.
        """
        served = self.find(name)
        if served is self.first:
            raise ModelInUse(f"{name!r} is what requests get that name no model: it stays"[:300], "model")
        served.leaving = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await served.free.wait()
                    if served.loading is not None:  # nobody waits for it any more, and it would come back
                        await asyncio.wait({served.loading})
            if served.loading is not None:
                raise ModelInUse(f"the model {name!r} is being loaded"[:300], "model")
            async with self._changing:
                if served.uses:
                    raise ModelInUse(f"{served.uses} requests inside are for the model {name!r}"[:300], "model")
                if served.model is not None:
                    await self._end(served, "asked")
                if self._served.pop(name, None) is None:
                    raise ModelNotFound(f"model: no bundle of the name {name!r} could be loaded"[:300], "model")
        finally:
            served.leaving = False
        return served


def _not_ready(served: Served, why: str, seconds: int) -> NotReady:
    return NotReady(f"the model {served.name!r} {why}"[:300], "model", headers={"retry-after": str(seconds)})


async def watch(models: Models) -> None:
    """Unloads in time what nobody asks for any more."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        await models.unload_idle()
