"""What /metrics answers: the figures of this process, or of all the processes of its server, added up.

With several, each writes its figures into files of its own (the multi-process mode of Prometheus' client). That mode
knows nothing of two kinds: what is asked for at the moment (`process_*`), and information (`whispergpt_build_info`).
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.metrics import Metrics
from app.shared import Shared

TRIES = 3
CPU, START = "process_cpu_seconds", "process_start_time_seconds"


def write_to(shared: Shared) -> None:
    """From now on figures are written to the folder. To be called before any are made.

    A process is called by its index, not by its number: whoever takes the place of another counts on from where that
    one stood, and files do not become more.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared.metrics)
    values.ValueClass = values.MultiProcessValue(lambda: shared.index)


def forget(folder: Path, index: int) -> None:
    """A process is gone: so are its requests, slots and sessions. What it has counted stays."""
    mark_process_dead(index, str(folder))


def exposition(metrics: Metrics, shared: Shared | None) -> bytes:
    """The answer. With several processes not for the event loop: all files are read, which takes some ms."""
    if shared is None:
        return generate_latest(metrics.registry)
    together = CollectorRegistry()
    together.register(_Files(shared))
    together.register(metrics.build)
    together.register(_Processes(shared))
    return generate_latest(together)


class _Files(Collector):
    """All that the processes write."""

    def __init__(self, shared: Shared) -> None:
        self._folder = str(shared.metrics)

    def collect(self) -> Iterable[Metric]:
        for tries_left in reversed(range(TRIES)):
            try:
                return list(MultiProcessCollector(None, self._folder).collect())
            except struct.error:  # a file that a process has just made, and not yet begun
                if not tries_left:
                    raise
        raise AssertionError

    def describe(self) -> Iterable[Metric]:
        return []  # else it would be asked at once


class _Processes(Collector):
    """Memory, descriptors and processor time of all together; time also of those that are gone, or it would fall."""

    def __init__(self, shared: Shared) -> None:
        self._workers = shared.workers

    def collect(self) -> Iterable[Metric]:
        for _ in range(TRIES):
            known = self._workers.get()
            found = [_told_of(pid) for pid in known["pids"]]
            if all(found) or not any(found):  # else one ended meanwhile, and is counted among those that are gone
                break
        sums: dict[str, Metric] = {}
        for metric in (metric for told in found for metric in told):
            if metric.name not in sums:
                sums[metric.name] = metric
                continue
            (one,), (more,) = sums[metric.name].samples, metric.samples
            value = min(one.value, more.value) if metric.name == START else one.value + more.value
            sums[metric.name].samples = [one._replace(value=value)]
        if CPU in sums:
            (one,) = sums[CPU].samples
            sums[CPU].samples = [one._replace(value=one.value + known["ended_cpu_seconds"])]
        return sums.values()

    def describe(self) -> Iterable[Metric]:
        return []


def _told_of(pid: int) -> list[Metric]:
    """What the system tells of a process; nothing of one that is gone."""
    return list(ProcessCollector(pid=lambda: pid, registry=None).collect())


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, also of one that has ended and was not asked for its status; 0 if nobody knows."""
    return next((metric.samples[0].value for metric in _told_of(pid) if metric.name == CPU), 0.0)
