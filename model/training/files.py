"""Files that a training keeps beside its data."""

import json
import os
from pathlib import Path
from typing import Any


def put_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file in one move: a kill in the middle would leave half of what hours of work hang on."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    os.replace(part, path)
