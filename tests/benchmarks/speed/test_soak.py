"""The soak's own code: visits are what they are called, and its laws hold for a few hundred of them."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed.hostile import KINDS, LEFT, hostile
from benchmarks.speed.served import serving
from benchmarks.speed.soak import HOSTILE, Soak, State, good, slope_bytes, slopes, soak, summary

REQUESTS, RESTS = 600, 3
MOST_THREADS = 25  # after so few requests pools of threads still grow to their size, 12 to 14 in all
GROWTH_BYTES = 100_000  # a request; so few fill caches and pools (120 kB each in the first thousand), and leak less


def test_visits_are_of_every_kind_and_each_a_function_of_its_number() -> None:
    visits = [hostile(index) for index in range(300)]
    for index, one in enumerate(visits[:50]):
        again = hostile(index)  # boundaries of forms are drawn
        assert (one.kind, one.expected, one.stays) == (again.kind, again.expected, again.stays)
        assert [len(part) for part in one.parts] == [len(part) for part in again.parts]
    kinds = Counter(one.kind for one in visits)
    assert len(kinds) == len(set(KINDS)) and max(kinds.values()) < 0.25 * len(visits)
    assert all(one.expected for one in visits)
    assert {one.kind for one in visits if any(word.startswith("5") for word in one.expected)} == {"no time"}
    assert {one.kind for one in visits if one.expected == {LEFT}} == {
        "half head",
        "half body",
        "unread",
        "byte by byte",
        "session unread",
    }
    assert {good(index)[0] for index in range(100)} == {"/continue", "/score", "/v1/audio/prompts"}


def states(held: list[float]) -> list[State]:
    return [State(100 * at, 500.0, kib, 50.0, 16, 12, 0.0, 0.0, 0, 0, 2) for at, kib in enumerate(held)]


def test_a_slope_is_told_and_what_is_left() -> None:
    straight = [100.0 + at for at in range(9)]
    assert slope_bytes(states(straight)) == pytest.approx((1024 / 100,) * 3)
    assert slope_bytes(states([*straight[:4], 900.0, *straight[5:]]))[0] == pytest.approx(1024 / 100), (
        "one rest is none"
    )
    assert slope_bytes(states([100.0] * 9)) == (0, 0, 0)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        _, low, high = slope_bytes(states([100.0 + at + noise for at, noise in enumerate(rng.normal(0, 3, 12))]))
        inside += low <= 1024 / 100 <= high
    assert 180 <= inside < 200, "19 of 20 times"
    assert slopes(states([0.0, 0.0, 0.0, 0.0, 9.0]))["200"] > slopes(states([0.0, 0.0, 0.0, 0.0, 9.0]))["100"] > 0
    before, after = states([1.0, 1.0])
    assert after.left(before) == {}
    more = State(**{**vars(after), "descriptors": 18, "files": 1})
    assert more.left(before) == {"descriptors": 2, "files": 1}


@pytest.mark.slow
def test_a_server_stands(folder: Path, tmp_path: Path) -> None:
    with serving(folder, "--threads", "1", "--drain-grace-seconds", "0", TMPDIR=str(tmp_path)) as server:
        time.sleep(1)  # its decoders are there
        run = Soak(server, 8)
        *_, found = soak(run, tmp_path, REQUESTS, RESTS)
        told = summary(run, found, server.said())
    assert told["requests"] == REQUESTS and abs(told["hostile"] - HOSTILE * REQUESTS) < 0.1 * REQUESTS
    assert told["unexpected_5xx"] == told["unexpected_count"] == told["tracebacks"] == 0, told["unexpected"]
    more = {name: count for name, count in told["left_behind"].items() if name != "threads"}
    assert not more
    assert found[-1].threads < MOST_THREADS
    assert slope_bytes(found[-2:])[0] < GROWTH_BYTES
