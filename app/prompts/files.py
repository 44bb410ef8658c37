"""What is kept to go on from, as a file: its arrays as safetensors, the form of the rest in the file's header."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from app.audio.notices import Notice
from app.engine.requests import ReadPrompt
from app.prompts.store import Kept
from model.files import whole_file
from model.inference.saved_state import Array, put_together, taken_apart


def write(path: Path, kept: Kept, now: float) -> None:
    """Whole, or not at all, and used at ``now``. Raises OSError."""
    arrays: list[Array] = []
    ends = [[taken_apart(part, arrays) for part in (end.state, end.logprobs, end.tail)] for end in kept.ends]
    form = {
        "ends": ends,
        "samples": taken_apart(kept.samples, arrays),
        "warnings": [(one.code, one.message) for one in kept.warnings],
        "model": kept.model,
        "identity": kept.identity,
    }
    # in C's order, and a scalar stays one
    held = {str(number): np.array(array, order="C", copy=None) for number, array in enumerate(arrays)}
    with whole_file(path) as part:
        part.write_bytes(save(held, {"form": json.dumps(form)}))
        touch(part, now)


def touch(path: Path, now: float) -> None:
    """A file's last use, seconds on a clock of the caller's. Raises FileNotFoundError."""
    moment = round(now * 1e9)
    os.utime(path, ns=(moment, moment))


def read(path: Path, device: torch.device) -> Kept:
    """The same again; states are on ``device``. Raises FileNotFoundError."""
    with safe_open(path, framework="np") as file:
        form = json.loads(file.metadata()["form"])
        # copies, which may be written to and outlive the file
        arrays: list[Array] = [np.array(file.get_tensor(str(number))) for number in range(len(file.keys()))]
    ends = [ReadPrompt(*(put_together(part, arrays, device) for part in end)) for end in form["ends"]]
    samples = put_together(form["samples"], arrays, device)
    warnings = tuple(Notice(*one) for one in form["warnings"])
    return Kept(ends, samples, warnings, form["model"], form["identity"])
