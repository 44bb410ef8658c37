"""A run's log, sent to trackio (github.com/gradio-app/trackio), which keeps figures in a local database and shows them.

It reads what a training has written, in a process of its own: whatever becomes of the tracker, the training goes on. A
file beside the log, ``tracked.json``, keeps up to which step a project has it, so that sending goes on where it
stopped, also after a training that was itself cut off and resumed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from model.files import put_json
from model.training.corpus import DataError
from model.training.loop import read_log

TRACKED = "tracked.json"


class Tracker(Protocol):
    """What is used of the package `trackio`; W&B's has the same names."""

    def init(self, **settings: Any) -> Any: ...

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None: ...

    def finish(self) -> None: ...


def settings_of(run: Path) -> dict[str, Any]:
    """What a run was started with: its settings by group, and its machine. Raises DataError where there is no run."""
    try:
        known: dict[str, Any] = json.loads((run / "settings.json").read_text())
    except FileNotFoundError as error:
        raise DataError(f"{run} holds no training run") from error
    return {**known["settings"], "machine": known["machine"]}


def finished(run: Path) -> bool:
    """Whether the log has the run's last step."""
    log, settings = read_log(run), settings_of(run)
    training = settings["training"]
    # `train_decoder` teaches such a decoder's reader of pitch before, in steps of its own
    reading = training.get("reader_steps", 0) if settings["config"].get("decoder") == "harmonic" else 0
    return bool(log) and log[-1]["step"] >= reading + training["steps"]


def flat(settings: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """``{"training": {"rate": 1}}`` -> ``("training.rate", 1)``: a table of runs has a column a setting."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def send(run: Path, tracker: Tracker, project: str, name: str) -> int:
    """Sends the steps of a run that ``project`` does not have yet; returns how many.

    Raises DataError where there is no run, and whatever the tracker raises; then the same steps are sent the next time.
    """
    config = dict(flat(settings_of(run)))
    state = run / TRACKED
    sent: dict[str, int] = json.loads(state.read_text()) if state.exists() else {}
    place = f"{project}/{name}"
    fresh = [entry for entry in read_log(run) if entry["step"] > sent.get(place, 0)]
    if not fresh:
        return 0
    # only the run's own figures: no picture in a notebook, no processor's load
    tracker.init(
        project=project, name=name, config=config, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
    )
    try:
        for entry in fresh:
            tracker.log({key: value for key, value in entry.items() if key != "step"}, step=entry["step"])
    finally:
        tracker.finish()
    put_json(state, sent | {place: fresh[-1]["step"]})
    return len(fresh)
