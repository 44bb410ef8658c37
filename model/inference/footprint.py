"""Memory that a checkpoint and its slots take."""

from typing import Any

import numpy as np
import torch


def nbytes_of(*things: Any) -> int:
    """Bytes of all arrays and tensors in what is given, and in what its attributes hold; what is shared counts once.

    That is what was asked of the system: an array of zeros takes it only as it is written to. Looked into are objects
    of this package, torch's modules, and Python's containers.
    """
    sizes: dict[int, int] = {}  # by where the numbers are
    seen: set[int] = set()
    rest = list(things)
    while rest:
        thing = rest.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            place = int(thing.__array_interface__["data"][0])
            sizes[place] = max(sizes.get(place, 0), thing.nbytes)
        elif isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, dict):
            rest.extend(thing.values())
        elif isinstance(thing, list | tuple | set):
            rest.extend(thing)
        elif isinstance(thing, torch.nn.Module) or type(thing).__module__.startswith("model."):
            rest.extend(getattr(thing, "__dict__", {}).values())
    return sum(sizes.values())
