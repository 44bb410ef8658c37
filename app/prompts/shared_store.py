"""What several processes keep to go on from: files in a folder that all of them read, which outlive their process.

Nothing but the folder tells what is there, so no process can be wrong about it, or die with what others need. A file's
name has whose it is and what is needed to choose what goes; its time of change is that of its last use, on the clock
that jumps for nobody (`time.monotonic`, one for the whole machine). There are no locks (`app.shared`): when two
processes keep something at the same moment, what is kept may pass its bound until both have looked what is to go.
"""

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from app.errors import PromptNotFound
from app.metrics import Metrics
from app.prompts import files
from app.prompts.store import PREFIXES, Kept, Kind
from app.shared import Shared

SUFFIX = ".kept"
ORDER: tuple[Kind, ...] = ("continuation", "prompt")  # what goes first
log = logging.getLogger("whispergpt")


def _hash(text: str) -> str:
    """Part of a file's name for what clients may choose, or shall not see: ids are all that guards what they name."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A file."""

    path: Path
    kind: Kind
    key: str  # of owner and id
    client: str  # whose share it takes
    model: str
    nbytes: int
    used: float

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


class SharedPromptStore:
    """What `app.prompts.store.PromptStore` is, with its rules, for all processes of a server.

    Args:
        shared: whose folder it is.
        most_bytes: of all that is kept together; 0 keeps nothing.
        seconds: for which an unused one is kept.
        metrics: where to tell how much is kept. Each process tells of all of it.
        clock: seconds; a test has its own.
    """

    def __init__(
        self,
        shared: Shared,
        most_bytes: int,
        seconds: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self.device = torch.device("cpu")  # of what is read, as soon as there is a model
        self._folder, self._metrics, self._clock = shared.prompts, metrics, clock
        self._show(self._entries())

    def _entries(self) -> list[Entry]:
        """What is there, the one that was not used for longest first."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self._folder) as listed:  # somebody has tidied up too much
            for one in listed:
                if one.name.endswith(SUFFIX) and not one.name.startswith("."):
                    try:
                        told = one.stat()
                    except FileNotFoundError:  # another process has dropped it
                        continue
                    prefix, key, client, model, _ = one.name.split(".")
                    kind = next(kind for kind, text in PREFIXES.items() if text == prefix)
                    found.append(Entry(Path(one.path), kind, key, client, model, told.st_size, told.st_mtime_ns / 1e9))
        return sorted(found, key=lambda entry: entry.used)

    def _of(self, owner: str, name: str) -> Iterator[Entry]:
        key = _hash(f"{owner}\n{name}")
        return (entry for entry in self._entries() if entry.key == key)

    def keep(self, kind: Kind, owner: str, name: str, kept: Kept, client: str | None = None) -> bool:
        """Keeps it, in the place of what had its id. False when it alone is more than may be kept."""
        for entry in self._of(owner, name):
            if entry.kind == kind:
                entry.drop()
        if kept.nbytes > self.most_bytes:
            return False
        whose = _hash(owner if client is None else client)
        parts = (PREFIXES[kind], _hash(f"{owner}\n{name}"), whose, _hash(kept.model))
        path = self._folder / (".".join(parts) + SUFFIX)
        self._make_room(path, whose, kept.nbytes)
        try:
            files.write(path, kept, self._clock())
        except OSError as error:  # less room than was there at the start
            log.warning("nothing can be kept to go on from: %s", error.strerror)
            return False
        kept.expires = self._clock() + self.seconds
        self._show(self._make_room(path, whose))
        return True

    def _make_room(self, new: Path, client: str, nbytes: int = 0) -> list[Entry]:
        """Drops what is too old, and what goes for something new of a client's, which has so many bytes to come.

        The client that holds most gives way, with the continuation that was not used for longest; then with prompts.
        What is new never goes for itself. Returns what is left.
        """
        entries = self._fresh()
        shares = Counter({client: nbytes})
        for entry in entries:
            shares[entry.client] += entry.nbytes
        rest = [entry for entry in entries if entry.path != new]
        while rest and shares.total() > self.most_bytes:
            gone = min(rest, key=lambda one: (-shares[one.client], ORDER.index(one.kind), one.used))
            gone.drop()
            shares[gone.client] -= gone.nbytes
            rest.remove(gone)
            entries.remove(gone)
        return entries

    def _fresh(self) -> list[Entry]:
        oldest = self._clock() - self.seconds
        entries = self._entries()
        for entry in entries:
            if entry.used <= oldest:
                entry.drop()
        return [entry for entry in entries if entry.used > oldest]

    def use(self, kind: Kind, owner: str, name: str) -> Kept:
        """What is kept under an id, which is then kept for as long again. Raises PromptNotFound."""
        now = self._clock()
        for entry in self._of(owner, name):
            if entry.kind == kind and entry.used > now - self.seconds:
                try:
                    files.touch(entry.path, now)
                    kept = files.read(entry.path, self.device)
                except FileNotFoundError:  # another process has dropped it just now
                    break
                kept.expires = now + self.seconds
                return kept
        raise PromptNotFound(f"no {kind} is kept under this id: it was never here, or its time was up")

    def left_seconds(self, kept: Kept) -> float:
        """For which it will be kept if nobody uses it, and room is not short."""
        return kept.expires - self._clock()

    def drop(self, owner: str, name: str) -> None:
        """Forgets what is kept under an id, of either kind. Raises PromptNotFound."""
        found = list(self._of(owner, name))
        if not found:
            raise PromptNotFound("nothing is kept under this id: it was never here, or its time was up")
        for entry in found:
            entry.drop()
        self._show(self._entries())

    def drop_of(self, model: str) -> None:
        """Forgets what a model has made that is gone."""
        hashed = _hash(model)
        for entry in self._entries():
            if entry.model == hashed:
                entry.drop()
        self._show(self._entries())

    def drop_old(self) -> None:
        """Forgets what nobody used in time."""
        self._show(self._fresh())

    def _show(self, entries: list[Entry]) -> None:
        for kind in ORDER:
            self._metrics.prompts_kept.labels(kind).set(sum(entry.kind == kind for entry in entries))
        self._metrics.prompts_kept_bytes.set(sum(entry.nbytes for entry in entries))
