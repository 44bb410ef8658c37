"""How threads share a GPU: its device and a stream of its own for each. Never run by us (docs/gpu.md).

A thread's current device is the first one unless it says otherwise, and all threads queue their work on one default
stream unless they have their own: a step would wait for whatever prompt is being read.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SWITCH = "WHISPERGPT_CUDA_GRAPH"
_own = threading.local()


def graphs_wanted() -> bool:
    """May steps be recorded as CUDA graphs? ``WHISPERGPT_CUDA_GRAPH=0`` launches their operations one by one."""
    return os.environ.get(SWITCH, "1") != "0"


def new_stream(device: torch.device, urgent: bool = False) -> "torch.cuda.Stream | None":
    """A stream on a GPU, that goes before others when it is urgent; None elsewhere."""
    return torch.cuda.Stream(device, priority=-1 if urgent else 0) if device.type == "cuda" else None


@contextmanager
def on(device: torch.device, stream: "torch.cuda.Stream | None" = None) -> Iterator[None]:
    """Work inside goes to the device's stream, or to this thread's own one. Nothing changes where there is no GPU."""
    if device.type != "cuda":
        yield
        return
    if stream is None:
        streams: dict[torch.device, torch.cuda.Stream | None] = _own.__dict__.setdefault("streams", {})
        if device not in streams:
            streams[device] = new_stream(device)
        stream = streams[device]
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield


def mark(device: torch.device) -> "torch.cuda.Event | None":
    """An event behind all that this thread has queued; None where there is no GPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def agree(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """The same bits in all parts? Rows that nobody has joined may hold NaN, in the same places."""
    return all(
        a.shape == b.shape and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(one, other, strict=True)
    )
