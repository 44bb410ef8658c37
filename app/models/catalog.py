"""The bundles that the settings offer, by name: paths of bundles, and of folders with bundles in them.

Without torch, as far as only folders are asked for.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import UserError
from app.settings import PREFIX, Settings

if TYPE_CHECKING:
    from model.checkpoint import Bundle

CONFIG = "config.json"  # what makes a folder a bundle
log = logging.getLogger("whispergpt")


def folders(paths: Sequence[Path]) -> list[Path]:
    """The folders of bundles, in the order of the paths, and of their names within one. Raises UserError."""
    found: list[Path] = []
    for path in paths:
        within = [path] if (path / CONFIG).exists() else sorted(one.parent for one in path.glob(f"*/{CONFIG}"))
        if not within:
            raise UserError(f"no bundle in {path}; name one with --bundle or {PREFIX}BUNDLE")
        found += within
    return found


def catalog(paths: Sequence[Path]) -> dict[str, Path]:
    """The folder of each bundle by the bundle's name. Raises UserError, and BundleError for a path that is named.

    A bundle in a named folder whose config cannot be read is left out, with a line in the log: it may be on its way.
    """
    from model.checkpoint import BundleError, read_config

    found: dict[str, Path] = {}
    for folder in folders(paths):
        try:
            name = str(read_config(folder)["name"])
        except BundleError as error:
            if folder in paths:
                raise
            log.warning("%s is left out: %s", folder, error)
            continue
        if name in found:
            raise UserError(f"two bundles are called {name!r}: {found[name]} and {folder}")
        found[name] = folder
    if not found:
        raise UserError(f"no bundle can be read in {', '.join(map(str, paths))}")
    return found


def load(settings: Settings, folder: Path, device: str) -> "Bundle":
    """One of them. Raises BundleError."""
    from model.checkpoint import load_bundle, read_config

    # where there are several, the checkpoint is for those alone that were trained on it
    alone = len(settings.bundle) == 1 and folder == settings.bundle[0]
    codec = settings.codec if alone or read_config(folder)["codec"].get("kind") == "meta" else None
    return load_bundle(folder, device, codec)


def load_all(settings: Settings, device: str) -> "list[Bundle]":
    """All that the settings offer, the first one first. Raises UserError, and BundleError for a path that is named.

    All are in memory together then, also those that `models_mib` will have no room for: a path with a bundle that
    cannot be loaded is to be told of before the server serves.

    A bundle in a named folder that cannot be loaded is left out, as in `catalog`.
    """
    from model.checkpoint import BundleError

    bundles = []
    for folder in catalog(settings.bundle).values():
        try:
            bundles.append(load(settings, folder, device))
        except BundleError as error:
            if folder in settings.bundle:
                raise
            log.warning("%s is left out: %s", folder, error)
    if not bundles:
        raise UserError(f"no bundle can be loaded from {', '.join(map(str, settings.bundle))}")
    return bundles
