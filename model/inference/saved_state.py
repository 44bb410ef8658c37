"""States taken apart into plain data and arrays, to be written to a file, and put together again to the bit.

What a prompt or a row leaves behind (`model.inference.types`) is a tree of tuples, named tuples, dataclasses and
tensors, of kinds that codecs bring along. Its form becomes JSON, in which each array is a number. Nothing but classes
of `model` that hold plain fields is ever made from a name: a file can put wrong numbers into a state, and run no code.
"""

import importlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.lm.kv_cache import KVCache

Array = npt.NDArray[Any]
PLAIN = (bool, int, float, str)
CACHE_FIELDS = ("keys", "values", "window", "length")


def taken_apart(value: Any, arrays: list[Array]) -> Any:
    """The form of a value, for JSON; its arrays are appended to ``arrays``. Tensors come from whatever device."""
    if value is None or type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        held = value.detach().cpu()
        half = held.dtype == torch.bfloat16  # which numpy has no name for
        arrays.append((held.view(torch.int16) if half else held).numpy())
        return {"tensor": len(arrays) - 1, "bfloat16": half}
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, torch.cuda.Event):
        return None  # it was waited for, below
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, KVCache):
        return {"cache": [taken_apart(getattr(value, field), arrays) for field in CACHE_FIELDS]}
    if hasattr(value, "_fields"):
        return {"tuple": [taken_apart(part, arrays) for part in value], "of": name}
    if is_dataclass(value):
        for field in fields(value):  # on a GPU: another thread's stream may still be computing the rest of it
            if isinstance(event := getattr(value, field.name), torch.cuda.Event):
                event.synchronize()
        parts = {field.name: taken_apart(getattr(value, field.name), arrays) for field in fields(value)}
        return {"record": parts, "of": name}
    assert kind in (list, tuple), f"{name} cannot be written"
    return {kind.__name__: [taken_apart(part, arrays) for part in value]}


def put_together(form: Any, arrays: Sequence[Array], device: torch.device) -> Any:
    """The value of a form; its tensors on ``device``. Raises ValueError for what `taken_apart` did not make."""
    if not isinstance(form, dict):
        return form
    if "tensor" in form:
        held = torch.from_numpy(arrays[form["tensor"]])
        return (held.view(torch.bfloat16) if form["bfloat16"] else held).to(device)
    if "array" in form:
        return arrays[form["array"]]
    if "cache" in form:
        cache = KVCache.__new__(KVCache)
        for field, part in zip(CACHE_FIELDS, form["cache"], strict=True):
            setattr(cache, field, put_together(part, arrays, device))
        return cache
    if "record" in form:
        parts = {name: put_together(part, arrays, device) for name, part in form["record"].items()}
        return _kind(form["of"])(**parts)
    if "of" in form:
        return _kind(form["of"])(*(put_together(part, arrays, device) for part in form["tuple"]))
    make: Any = {"list": list, "tuple": tuple}
    ((name, members),) = form.items()
    return make[name](put_together(part, arrays, device) for part in members)


def _kind(name: str) -> Any:
    """A class of `model` that is a dataclass or a named tuple. Raises ValueError."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute, None) if module.startswith("model.") else None
    if not isinstance(found, type) or not (is_dataclass(found) or hasattr(found, "_fields")):
        raise ValueError(f"{name} is no state")
    return found
