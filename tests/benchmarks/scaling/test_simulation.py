"""The simulation holds to what is known of queues, and to the server's own rules."""

from dataclasses import replace

import numpy as np
import pytest

from app.engine.sequence import FIRST_CHUNK_FRAMES
from benchmarks.common import RESULTS
from benchmarks.report.pages import loaded
from benchmarks.scaling.compare import of_streams
from benchmarks.scaling.costs import Costs, line, measured
from benchmarks.scaling.simulation import Asked, Heard, Machine, shares, simulate
from model.constants import FRAME_RATE_HZ

COSTS = Costs(
    step=((1.0, 0.001), (4.0, 0.002), (16.0, 0.006)), prefill=((3.0, 0.09), (10.0, 0.28)), request=0.01, company=1.0
)


def test_cores_are_shared_by_weight_and_nobody_has_more_than_one() -> None:
    assert shares([1.0], 2) == [1.0]
    assert shares([1.0, 0.3], 2) == pytest.approx([1.0, 1.0])
    assert shares([1.0, 1.0, 0.5, 0.5], 2) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert shares([10.0, 1.0, 1.0], 2) == pytest.approx([1.0, 0.5, 0.5]), "what the heaviest cannot use is the others'"
    for weights in ([1.0] * 5, [3.0, 1.0, 0.1], [1.0, 0.33, 0.33]):
        assert sum(shares(weights, 2)) == pytest.approx(2.0)


def test_a_line_goes_through_its_points_and_on_beyond_them() -> None:
    points = ((1.0, 1.0), (3.0, 2.0), (5.0, 6.0))
    assert [line(points, at) for at in (0.5, 1.0, 2.0, 5.0, 6.0)] == [1.0, 1.0, 1.5, 6.0, 8.0]


def test_alone_a_listener_waits_for_the_sum_of_the_parts() -> None:
    (heard,) = simulate(Machine(), replace(COSTS, company=1.4), [Asked(2.0, 3.0, 5.0)])
    assert heard.first_audio == pytest.approx(0.01 + 0.09 + FIRST_CHUNK_FRAMES * 0.001)
    assert heard.ended == pytest.approx(0.01 + 0.09 + 5 * FRAME_RATE_HZ * 0.001)
    assert heard.short == 0.0 and not heard.refused


def test_one_reader_is_the_queue_that_theory_knows() -> None:
    """M/D/1 (Poisson arrivals, equal service): the mean wait is rho S / 2 (1 - rho), after Pollaczek and Khinchine."""
    costs = Costs(step=((1.0, 1e-6), (64.0, 1e-6)), prefill=((3.0, 0.1), (10.0, 0.1)), request=0.0, company=1.0)
    machine = Machine(cores=2, threads=1, slots=64, queue=10_000)
    for load in (0.3, 0.7):
        gaps = np.random.default_rng(0).exponential(0.1 / load, 4000)
        heard = simulate(machine, costs, [Asked(float(at), 3.0, 0.1) for at in np.cumsum(gaps)])
        waited = np.mean([one.first_audio for one in heard]) - 0.1
        assert waited == pytest.approx(load * 0.1 / (2 * (1 - load)), rel=0.1), load


def test_more_streams_wait_longer_and_get_gaps_when_the_cores_are_full() -> None:
    def level(count: int) -> list[Heard]:
        return simulate(Machine(slots=64, queue=64), COSTS, [Asked(at / count, 3.0, 12.0) for at in range(count)])

    few, some, many = level(4), level(24), level(64)
    waits = [float(np.median([one.first_audio for one in heard])) for heard in (few, some, many)]
    assert waits == sorted(waits) and waits[0] < waits[2]
    assert max(one.short for one in few) == 0.0
    assert max(one.short for one in many) > 0.1, "two workers of 32 rows each: a step takes longer than a frame lasts"
    assert all(one.ended < 60 for heard in (few, some, many) for one in heard)


def test_who_finds_no_permit_is_refused_and_all_others_are_served() -> None:
    machine = Machine(slots=2, queue=3)
    heard = simulate(machine, COSTS, [Asked(0.0, 3.0, 5.0) for _ in range(9)])
    assert [one.refused for one in heard] == [False] * 5 + [True] * 4
    assert all(np.isfinite(one.ended) for one in heard if not one.refused)
    later = simulate(machine, COSTS, [*(Asked(0.0, 3.0, 5.0) for _ in range(9)), Asked(60.0, 3.0, 5.0)])
    assert not later[-1].refused, "permits come back"


def test_company_makes_all_of_it_slower() -> None:
    asked = [Asked(at / 10, 3.0, 12.0) for at in range(30)]
    alone, crowded = (simulate(Machine(), replace(COSTS, company=company), asked) for company in (1.0, 1.3))
    assert np.mean([one.first_audio for one in crowded]) > np.mean([one.first_audio for one in alone])


def test_costs_come_from_the_results_and_the_runs_have_their_arrivals() -> None:
    costs = measured(RESULTS, 1.0)
    assert 0 < costs.request < 0.1
    assert costs.step_seconds(16) > 3 * costs.step_seconds(1) > 0
    assert costs.prefill_seconds(3.0) < costs.prefill_seconds(5.0) < costs.prefill_seconds(10.0)
    report = loaded(RESULTS, "streams")
    assert report is not None
    runs = list(of_streams(report))
    assert [len(run.asked) for run in runs] == [level["streams"] for level in report["http"]]
    assert all(run.asked[-1].at < report["conditions"]["arrive_seconds"] for run in runs)
