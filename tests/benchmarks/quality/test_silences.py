"""Silence traps: every setting is measured on the same prompts, with the pause that it names."""

import pytest
import torch

from benchmarks.quality import silences
from benchmarks.quality.silences import measure, spread
from benchmarks.report import evaluation_tables
from model.checkpoint import Bundle
from tests.support.signals import make_speech_like


def test_a_part_is_spread_over_all() -> None:
    items = [torch.tensor(index) for index in range(10)]
    assert [int(one) for one in spread(items, 4)] == [0, 2, 5, 7]
    assert spread(items, 10) == items == spread(items, 20)


def test_a_row_for_every_setting(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silences, "PROMPT_SECONDS", 0.5)
    pieces = [make_speech_like(1.6, seed) for seed in range(2)]
    rows = measure(bundle, pieces, (1.0, 0.8), (1.0,), (0.0, 0.5), seconds=0.2)
    assert [(row["temperature"], row["pause"]) for row in rows] == [(1.0, 0.0), (1.0, 0.5), (0.8, 0.0), (0.8, 0.5)]
    assert {row["continuations"] for row in rows} == {4}
    assert rows[0]["level_db"] != rows[1]["level_db"], "a pause is part of the prompt"


def test_the_page_counts_all() -> None:
    row = {"temperature": 1.0, "top_p": 0.9, "continuations": 4}
    rows = [row | {"pause": 0.0, "trapped": 0.25}, row | {"pause": 0.5, "trapped": 0.5}]
    conditions = {"trap_seconds": 1.5, "silent_db": -40.0, "made_seconds": 5.0, "prompt_seconds": 3.0, "seeds": [1, 2]}
    conditions |= {"bundle": "default", "hashes": {"decoder.safetensors": "0123456789abcdef"}}
    lines = evaluation_tables.silences(
        {split: {"prompts": 2, "rows": rows} for split in ("validation", "test")} | {"conditions": conditions}
    )
    assert "**Test**: 2 prompts, 2 seeds each; 3 of 8 in all." in lines
    assert "| 1 | 0.9 | 0.25 | 0.50 |" in lines
