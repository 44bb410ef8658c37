"""What is kept to go on from: prompts that were read, and where continuations ended. Bounded in bytes and in time."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.audio.notices import Notice
from app.audio.samples import Samples
from app.engine.requests import ReadPrompt
from app.errors import PromptNotFound
from app.metrics import Metrics

Kind = Literal["prompt", "continuation"]
LOOK_SECONDS = 10.0  # between two looks for what is too old
Key = tuple[str, str]  # owner, id
PREFIXES: dict[Kind, str] = {"prompt": "prompt", "continuation": "cont"}


def new_id(kind: Kind) -> str:
    """An id that nobody can guess, and that comes once: without keys, whoever knows it may use what it stands for."""
    return f"{PREFIXES[kind]}-{secrets.token_urlsafe(16)}"


@dataclass
class Kept:
    """What an id stands for.

    ``ends`` has one entry for a prompt and one a choice for a continuation. ``samples``: a prompt's own, at 24 kHz.
    ``model`` and ``identity``: the name of the model that made it, which alone can go on from it, and `Model.identity`.
    """

    ends: list[ReadPrompt]
    samples: Samples
    warnings: tuple[Notice, ...] = ()
    model: str = ""
    identity: str = ""
    expires: float = field(default=0.0, init=False)  # on the store's clock; each use puts it off
    client: str = field(default="", init=False)  # whose share it takes

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes + sum(end.nbytes for end in self.ends)


class Store(Protocol):
    """Where it is kept: in this process (`PromptStore`), or for several (`app.prompts.shared_store`)."""

    most_bytes: int

    def keep(self, kind: Kind, owner: str, name: str, kept: Kept, client: str | None = None) -> bool: ...
    def use(self, kind: Kind, owner: str, name: str) -> Kept: ...
    def left_seconds(self, kept: Kept) -> float: ...
    def drop(self, owner: str, name: str) -> None: ...
    def drop_of(self, model: str) -> None: ...
    def drop_old(self) -> None: ...


@dataclass
class Share:
    """What one client's entries take, and which they are: of each kind, the one that was not used for longest first."""

    held_bytes: int = 0
    keys: dict[Kind, OrderedDict[Key, None]] = field(
        default_factory=lambda: {"continuation": OrderedDict(), "prompt": OrderedDict()}
    )


class PromptStore:
    """Both kinds by owner and id; to another owner an id does not exist. For the event loop alone.

    When room is short, the client that holds most gives way: whoever holds no more than an even share of the whole
    loses nothing to others. Of this client's, the continuation that nobody used for longest goes first: every request
    leaves one, asked for or not. Prompts go when no other continuation is left, again the one that was not used for
    longest. What comes in never goes for itself: behind prompts that fill the store, no continuation could be gone on
    from.

    Args:
        most_bytes: of all that is kept together; 0 keeps nothing.
        seconds: for which an unused one is kept.
        metrics: where to tell how much is kept.
        clock: seconds; a test has its own.
    """

    def __init__(
        self, most_bytes: int, seconds: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most_bytes, self.seconds, self._metrics, self._clock = most_bytes, seconds, metrics, clock
        self.held_bytes = 0
        self._kept: dict[Kind, OrderedDict[Key, Kept]] = {"continuation": OrderedDict(), "prompt": OrderedDict()}
        self._shares: dict[str, Share] = {}  # of clients that have some

    def keep(self, kind: Kind, owner: str, name: str, kept: Kept, client: str | None = None) -> bool:
        """Keeps it, in the place of what had its id. False when it alone is more than may be kept.

        ``client``: whose share it takes; its owner's by default.
        """
        key = (owner, name)
        self._forget(kind, key)
        if kept.nbytes > self.most_bytes:
            return False
        kept.expires = self._clock() + self.seconds
        kept.client = owner if client is None else client
        self._kept[kind][key] = kept
        self.held_bytes += kept.nbytes
        share = self._shares.setdefault(kept.client, Share())
        share.keys[kind][key] = None
        share.held_bytes += kept.nbytes
        self.drop_old()
        while self.held_bytes > self.most_bytes:
            self._forget(*self._least_wanted((kind, key)))
        self._show()
        return True

    def _least_wanted(self, new: tuple[Kind, Key]) -> tuple[Kind, Key]:
        """What goes next; never ``new``, beside which there is something, or it would have room."""
        for share in sorted(self._shares.values(), key=lambda share: share.held_bytes, reverse=True):
            for kind, keys in share.keys.items():
                for key in keys:
                    if (kind, key) != new:
                        return kind, key
        raise AssertionError("what came in has room by itself")

    def use(self, kind: Kind, owner: str, name: str) -> Kept:
        """What is kept under an id, which is then kept for as long again. Raises PromptNotFound."""
        self.drop_old()
        kept = self._kept[kind].get((owner, name))
        if kept is None:
            raise PromptNotFound(f"no {kind} is kept under this id: it was never here, or its time was up")
        kept.expires = self._clock() + self.seconds
        self._kept[kind].move_to_end((owner, name))
        self._shares[kept.client].keys[kind].move_to_end((owner, name))
        return kept

    def left_seconds(self, kept: Kept) -> float:
        """For which it will be kept if nobody uses it, and room is not short."""
        return kept.expires - self._clock()

    def drop(self, owner: str, name: str) -> None:
        """Forgets what is kept under an id, of either kind. Raises PromptNotFound."""
        if not any(self._forget(kind, (owner, name)) for kind in self._kept):
            raise PromptNotFound("nothing is kept under this id: it was never here, or its time was up")
        self._show()

    def drop_of(self, model: str) -> None:
        """Forgets what a model has made that is gone."""
        for kind, kept in self._kept.items():
            for key in [key for key, one in kept.items() if one.model == model]:
                self._forget(kind, key)
        self._show()

    def drop_old(self) -> None:
        """Forgets what nobody used in time."""
        now = self._clock()
        for kind, kept in self._kept.items():
            while kept and next(iter(kept.values())).expires <= now:  # in the order of their last uses
                self._forget(kind, next(iter(kept)))
        self._show()

    def _forget(self, kind: Kind, key: Key) -> bool:
        kept = self._kept[kind].pop(key, None)
        if kept is None:
            return False
        self.held_bytes -= kept.nbytes
        share = self._shares[kept.client]
        del share.keys[kind][key]
        share.held_bytes -= kept.nbytes
        if not any(share.keys.values()):
            del self._shares[kept.client]
        return True

    def _show(self) -> None:
        for kind, kept in self._kept.items():
            self._metrics.prompts_kept.labels(kind).set(len(kept))
        self._metrics.prompts_kept_bytes.set(self.held_bytes)


async def watch(store: Store) -> None:
    """Forgets in time what nobody asks for any more."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        store.drop_old()
