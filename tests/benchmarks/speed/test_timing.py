"""Turns, clocks and what they are written down as."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.speed.timing import Figure, clocks, conditions, in_turns, since, write


def test_contenders_take_turns_and_the_first_turn_is_not_counted() -> None:
    order = []

    def contender(name: str) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            order.append(name)
            return float(len(order)), 0.0

        return run

    found = in_turns({name: contender(name) for name in "abc"}, turns=2)
    assert "".join(order) == "abcabcabc"
    assert found["a"] == [(4.0, 0.0), (7.0, 0.0)] and found["c"] == [(6.0, 0.0), (9.0, 0.0)]


def test_processor_time_leaves_out_what_others_took() -> None:
    begin = clocks()
    time.sleep(0.2)
    wall, processor = since(begin)
    assert wall >= 0.2 and processor < 0.05
    begin = clocks()
    while time.thread_time() - begin[1] < 0.05:
        pass
    wall, processor = since(begin)
    assert processor >= 0.05 and wall >= 0.9 * processor  # not equal: two clocks, read one after the other


def test_figures_are_medians_with_their_range() -> None:
    figure = Figure.of([(3.0, 1.0), (1.0, 1.0), (2.0, 4.0)], scale=10.0)
    assert figure.wall == {"median": 20.0, "low": 10.0, "high": 30.0}
    assert figure.processor == {"median": 10.0, "low": 10.0, "high": 40.0}


def test_a_file_holds_its_conditions(tmp_path: Path) -> None:
    found_in = conditions()
    assert found_in["cores"] >= 1 and found_in["torch"] and found_in["processor"]
    path = tmp_path / "new" / "figures.json"
    write(path, found_in, {"value": 1 / 3})
    assert json.loads(path.read_text()) == {"conditions": found_in, "value": 0.33333}
    assert [one.name for one in path.parent.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("key", ["processor", "cores", "threads", "torch", "commit", "load"])
def test_conditions_name_the_machine(key: str) -> None:
    assert key in conditions()
