"""What training runs share: steps that know their randomness, checkpoints that are whole, logs that heal."""

import json
import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.training.configs import (
    ADDED,
    CodecTraining,
    DecoderTraining,
    LMTraining,
    SourceFilterTraining,
    TokenSettings,
    before,
)  # fmt: skip
from model.training.loop import Run, cosine_rate, machine, step_rng


def test_step_rng_depends_on_seed_and_step_alone() -> None:
    first = step_rng(1, 2).random(5)
    np.random.default_rng().random(3)
    assert np.array_equal(step_rng(1, 2).random(5), first)
    for other in (step_rng(1, 3), step_rng(2, 2), step_rng(2, 1)):
        assert not np.array_equal(other.random(5), first)


def test_cosine_rate() -> None:
    rates = [cosine_rate(step, 100, 2.0, warmup=10) for step in range(120)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == 2.0 and rates[10] == 2.0
    assert rates[10:101] == sorted(rates[10:101], reverse=True)
    assert rates[55] == pytest.approx(2.0 * (0.02 + 0.98 * 0.5))
    assert rates[100:] == pytest.approx([0.04] * 20)


def counting(run: Run, first: int, last: int, **settings: Any) -> list[int]:
    """A training whose loss is the number of its step."""
    step: Callable[[int], dict[str, float]] = lambda index: {"loss": float(index)}  # noqa: E731
    return list(run.steps(first, last, step, lambda: {"weights": torch.ones(2)}, **settings))


def test_steps_log_means_and_validation(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    done = counting(run, 0, 7, validate=lambda: {"valid": 0.5}, validate_every=4, log_every=3)
    assert done == [1, 2, 3, 4, 5, 6, 7]
    entries = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history()]
    assert entries == [
        {"step": 3, "loss": 1.0},
        {"step": 4, "valid": 0.5},
        {"step": 6, "loss": 4.0},
        {"step": 7, "loss": 6.0, "valid": 0.5},
    ]


def test_the_last_step_is_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    assert run.load() is None
    counting(run, 0, 3)
    state = run.load()
    assert state is not None and state["step"] == 3 and torch.equal(state["weights"], torch.ones(2))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_come_with_time(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    steps = run.steps(0, 10, lambda index: {"loss": 0.0}, dict, save_seconds=-1.0)
    for done in steps:
        state = run.load()
        assert state is not None and state["step"] == done
        if done == 4:
            break
    assert isinstance(steps, Generator)
    steps.close()
    lazy = Run(tmp_path / "lazy", {})
    for done in lazy.steps(0, 10, lambda index: {"loss": 0.0}, dict):
        assert (lazy.load() is not None) == (done == 10)


def test_a_kill_while_saving_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, {})
    run.save({"step": 1})

    def killed(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save({"step": 2})
    assert run.load() == {"step": 1}


def test_history_heals(tmp_path: Path) -> None:
    """What was logged twice after a resume counts once, the later one; a line cut off by a kill does not count."""
    run = Run(tmp_path, {})
    assert run.history() == []
    for step, loss in ((50, 3.0), (100, 2.0), (150, 1.5), (100, 2.5)):
        run.log(step=step, loss=loss)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 200, "lo')
    assert [(entry["step"], entry["loss"]) for entry in run.history()] == [(50, 3.0), (100, 2.5), (150, 1.5)]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Run(tmp_path, {"rate": 1, "steps": 2})
    Run(tmp_path, {"steps": 2, "rate": 1})
    for other in ({"rate": 2, "steps": 2}, {"rate": 1}, {"rate": 1, "steps": 2, "more": 3}):
        with pytest.raises(ValueError, match="other settings"):
            Run(tmp_path, other)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["settings"] == {"rate": 1, "steps": 2} and kept["machine"]["torch"] == torch.__version__


@dataclass(frozen=True)
class Settings:
    """The second field came later, and its default is what was done before; that of the third is not."""

    rate: float = 1.0
    shares: tuple[tuple[int, float], ...] = field(default=((8, 0.5), (4, 0.5)), metadata=ADDED)
    pauses: float = 8.0


def settings_of(**values: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps({"training": asdict(Settings(**values)), "tokens": {"hours": 1}}))
    return made


def test_a_run_of_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    earlier = {"training": before(Settings), "tokens": {"settings": {"seed": 0}}}
    old = settings_of()
    del old["training"]["shares"]
    Run(tmp_path, old)
    kept = (tmp_path / "settings.json").read_text()
    Run(tmp_path, settings_of(), earlier)
    assert (tmp_path / "settings.json").read_text() == kept
    for other in (settings_of(shares=((8, 1.0),)), settings_of(rate=2.0)):
        with pytest.raises(ValueError, match=r"other settings \(training\)"):
            Run(tmp_path, other, earlier)


def test_a_default_that_was_not_so_before_is_another_setting(tmp_path: Path) -> None:
    old = settings_of()
    del old["training"]["pauses"]
    Run(tmp_path, old)
    with pytest.raises(ValueError, match="other settings"):
        Run(tmp_path, settings_of(), {"training": before(Settings)})


@pytest.mark.parametrize(
    "kind",
    [CodecTraining, SourceFilterTraining, DecoderTraining, LMTraining, TokenSettings],
    ids=lambda kind: kind.__name__,
)
def test_what_was_added_names_its_default(kind: Any) -> None:
    """`before` is what a run that does not name the fields is taken for: at the defaults, the same run."""
    known = json.loads(json.dumps(asdict(kind())))
    assert before(kind) and known == known | before(kind)


def test_plot_of_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    assert run.plot() is None
    run.log(step=1, seconds=0.1, rate=0.5)
    assert run.plot() is None


def test_nan_does_not_stop_the_plot(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    run.log(step=1, loss=math.nan)
    run.log(step=2, loss=1.0, valid=2.0)
    assert run.plot() == tmp_path / "loss.png"


def test_machine_names_the_conditions() -> None:
    assert {"torch", "python", "cores", "threads", "cuda"} <= machine().keys()
