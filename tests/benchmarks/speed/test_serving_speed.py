"""The benchmarks that speak HTTP and those of live streams, small, with the tiny model and real servers."""

import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from benchmarks.speed import batching, first_audio, memory, score_throughput, streams
from benchmarks.speed.memory import slope, watch_memory
from benchmarks.speed.served import serving, share_below
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ
from model.inference.prefill import prefill


def ran(
    monkeypatch: pytest.MonkeyPatch, script: Any, tmp_path: Path, folder: Path, *arguments: object
) -> dict[str, Any]:
    """What a script writes."""
    out = tmp_path / "out.json"
    words = ["script", "--bundle", str(folder), "--out", str(out), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["conditions"]["cores"] and found["conditions"]["torch"]
    return found


def test_frames_in_time_are_heard_without_a_gap() -> None:
    even = [i / FRAME_RATE_HZ for i in range(200)]
    assert streams.heard(even).short == pytest.approx(0.0, abs=1e-9)
    late = [at + (0.3 if index >= 100 else 0.0) for index, at in enumerate(even)]
    assert streams.heard(late).short == pytest.approx(0.3 - 2 / FRAME_RATE_HZ), "two frames are in hand at any time"
    slow = [2 * at for at in even]
    assert streams.heard(slow).short > 197 / FRAME_RATE_HZ - 0.1


def test_the_most_streams_are_those_below_the_first_that_fails() -> None:
    levels = [{"streams": n, "holds": n not in (8, 64)} for n in (16, 1, 4, 8, 64)]
    assert streams.most(levels) == 4
    assert streams.most([{"streams": 2, "holds": False}]) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_workers_share_the_streams(bundle: Bundle, speech_like: Tensor, count: int) -> None:
    found = streams.in_workers(bundle, prefill(bundle, speech_like[:24000]), count, 2, frames=75)
    assert found["workers"] == min(count, 2) and found["streams"] == count
    assert found["times_real_time"] > 1 and found["holds"], "the tiny model is far faster than this"
    assert 0 < found["step_ms"]["p50"] <= found["step_ms"]["p99"]


def test_what_is_between_two_readings_of_a_histogram() -> None:
    before, after = {0.01: 4.0, 0.1: 5.0, math.inf: 5.0}, {0.01: 7.0, 0.1: 9.0, math.inf: 10.0}
    assert share_below(before, after, 0.01) == pytest.approx(3 / 5)
    assert share_below(before, after, 0.1) == pytest.approx(4 / 5)
    assert share_below(before, before, 0.1) is None


def test_a_metric_that_is_not_there_is_no_zero(folder: Path) -> None:
    with serving(folder) as server:
        assert server.metric("slots_used") == 0
        assert math.inf in server.histogram("event_loop_lag_seconds")
        for read in (server.metric, server.histogram):
            with pytest.raises(KeyError):
                read("no_such_metric")


def test_streams_over_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setattr(streams, "ARRIVE_SECONDS", 0.5)
    found = ran(monkeypatch, streams, tmp_path, folder, "--levels", 1, "--http-levels", 2, "--seconds", 1)
    assert found["http"][0]["errors"] == {} and found["http"][0]["first_audio_seconds"]["p50"] > 0
    late = found["http"][0]["event_loop_late"]
    assert 0 < late["at_most_10_ms"] <= late["at_most_100_ms"] <= 1
    assert found["live_streams"]["workers"] in (0, 1) and found["live_streams"]["http"] in (0, 2)


@pytest.mark.slow
def test_first_audio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    found = ran(monkeypatch, first_audio, tmp_path, folder, "--requests", 2, "--turns", 1, "--duration", 1)
    assert found["alone"]["3 s prompt"]["requests"] == 2
    assert 0 < found["alone"]["3 s prompt"]["first_audio_seconds"]["p50"] < 5
    assert set(found["load"]) == set(first_audio.SLOTS)
    assert all(one["answered"] == one["requests"] >= 1 for one in found["load"].values())


@pytest.mark.slow
def test_batching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    found = ran(monkeypatch, batching, tmp_path, folder, "--turns", 1, "--seconds", 0.5)
    once = found["seconds"][batching.ONCE]["median"]
    assert found["times_as_fast_at_once"][batching.TURN] == pytest.approx(
        found["seconds"][batching.TURN]["median"] / once, rel=1e-3
    )


@pytest.mark.slow
def test_score_throughput(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    found = ran(monkeypatch, score_throughput, tmp_path, folder, "--turns", 1, "--seconds", 2)
    assert all(figure["median"] > 1 for figure in found["times_real_time"].values())
    assert set(found["times_real_time"]) == {score_throughput.HERE, score_throughput.ONE, score_throughput.TWO}


def test_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    found = ran(monkeypatch, memory, tmp_path, folder, "--seconds", 40)
    assert found["audio_seconds"] == pytest.approx(40, abs=0.1)
    assert 20 < found["low_mib"] <= found["high_mib"] < 4000 and found["readings"] >= 2


def test_a_leak_has_a_slope() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    readings = [(float(6 * i), 500 + (0 if i < 20 else 0.2 * i) + float(noise[i])) for i in range(100)]
    assert slope(readings)["mib_a_minute"] == pytest.approx(2.0, abs=0.02)
    level = [(made, 500.0) for made, _ in readings]
    assert slope(level)["mib_a_minute"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_a_servers_memory_is_read_while_it_works(folder: Path) -> None:
    with serving(folder, "--max-seconds", "60") as server, watch_memory(server, 0.02) as watch:
        report = asyncio.run(memory.streamed(server, 1, 20.0))
    assert report.outcomes[0].error is None
    made = [made for made, _ in watch.readings]
    assert made == sorted(made) and made[-1] > 1 and load_bundle(folder).preset == "tiny"


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no bundle in"), serving(tmp_path / "nowhere"):
        pass
