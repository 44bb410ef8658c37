"""Files that are whole, or what they were before: a kill in the middle of writing would leave half of them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` at the end, in one move; nothing is left of a failure.

    Where ``path`` is a link, the file that it points to is replaced; permissions stay. Raises OSError.
    """
    target = path.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        if target.exists():
            part.chmod(target.stat().st_mode)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def put_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Replaces a file by JSON in one move. Raises OSError."""
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=indent) + "\n")
