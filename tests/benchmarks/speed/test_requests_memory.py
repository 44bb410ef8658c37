"""Memory over requests of every kind: one sequence for all, and memory is level once it has warmed up."""

import asyncio
import io

import pytest
import soundfile

from app.audio.formats import MEDIA_TYPES
from app.server.memory import trimmer
from benchmarks.common import DEFAULT
from benchmarks.speed.requests_memory import SHARES, Reading, Visits, at_rest, reading, summary, wish
from benchmarks.speed.served import serving

WARM_UP, REQUESTS = 80, 160
MORE_MIB = 250.0  # than at the start, when all has warmed up
LEVEL_MIB = 80.0  # from then on


def test_requests_are_of_every_kind_and_each_a_function_of_its_number() -> None:
    first, again = ([wish(index, 2.0) for index in range(150)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert (one.kind, one.fields, one.leaves_after) == (other.kind, other.fields, other.leaves_after)
        assert [len(file) for file in one.files] == [len(file) for file in other.files]  # OGG numbers streams at random
    assert {one.kind for one in first} == set(SHARES)
    forms = {one.fields["response_format"] for one in first if one.kind in ("whole", "stream")}
    assert forms == {"json", *MEDIA_TYPES}
    lengths = [soundfile.info(io.BytesIO(one.files[0])).duration for one in first if one.kind == "whole"]
    assert 0.2 < min(lengths) < 0.8 < 1.5 < max(lengths) < 2.1
    assert len({round(length, 3) for length in lengths}) > 0.8 * len(lengths), "hardly two of one length"


def test_a_leak_and_a_cache_that_fills_differ_in_the_second_half() -> None:
    def readings(size: list[float]) -> list[Reading]:
        return [(100 * at, 200 + one, one) for at, one in enumerate(size)]

    leak = summary(readings([float(at) for at in range(40)]), (0, 200.0, 0.0), (4000, 210.0, 10.0))
    assert leak["first_half_mib_a_thousand"] == pytest.approx(10) == leak["second_half_mib_a_thousand"]
    fills = summary(readings([min(20.0, at) for at in range(40)]), (0, 200.0, 0.0), (4000, 210.0, 10.0))
    assert fills["first_half_mib_a_thousand"] == pytest.approx(10)
    assert fills["second_half_mib_a_thousand"] == pytest.approx(0)
    assert (fills["start_mib"], fills["high_mib"], fills["rest_mib"]) == (200, 220, 210)


@pytest.mark.slow
@pytest.mark.skipif(trimmer() is None, reason="this system's C library cannot be asked to give memory back")
def test_memory_is_level() -> None:
    """The weights that ship. From the first rest to the second 30 MiB were measured.

    While prompts' states waited for Python's collector, and free memory for nothing, it was 126.
    """
    with serving(DEFAULT) as server:
        visits = Visits(server, at_once=6, longest=4.0)
        _, _, start = reading(server, 0)
        asyncio.run(visits.send(0, WARM_UP))
        _, _, before = at_rest(server, visits.done)
        asyncio.run(visits.send(WARM_UP, REQUESTS))
        _, _, after = at_rest(server, visits.done)
    served = sum(count for outcome, count in visits.outcomes.items() if outcome.endswith(" 200"))
    assert served > 0.7 * (WARM_UP + REQUESTS), visits.outcomes
    assert not [outcome for outcome in visits.outcomes if ": 5" in outcome]
    assert after - start < MORE_MIB, visits.readings
    assert after - before < LEVEL_MIB, visits.readings
