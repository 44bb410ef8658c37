"""The step benchmark: everything that needs no transformers, with the tiny model; and the roofline's counts."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from benchmarks.speed.baselines import Run, bundle_of, closed_loop, random_model, token_step, torch_token_step, uncached
from benchmarks.speed.prompts_together import PARTS, ways
from benchmarks.speed.roofline import Roof, Work, frame_work, peak_operations, read_bandwidth, token_work
from benchmarks.speed.step import DYNAMIC, HYBRID, LARGE, OURS, STATIC, TORCH, UNCACHED, ratios
from benchmarks.speed.timing import Figure
from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES
from model.inference.numba_backend.gemm import is_half
from model.lm.config import PRESETS


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "contender", [token_step, torch_token_step, uncached], ids=["compiled", "torch", "uncached"]
)  # fmt: skip
def test_a_token_step_has_a_time(bundle: Bundle, contender: Callable[[Bundle, int, int], Run], rows: int) -> None:
    wall, processor = contender(bundle, rows, 3)()
    assert wall > 0 and processor > 0


@pytest.mark.parametrize("kind", ["compiled", "torch"])
def test_a_frame_has_a_time(bundle: Bundle, kind: Literal["compiled", "torch"]) -> None:
    assert min(closed_loop(bundle, 4, 3, kind)()) > 0


def test_reading_together_has_times(bundle: Bundle) -> None:
    found = ways(bundle, torch.randn(2, 20 * HOP_SAMPLES) * 0.1)
    assert set(found) == {f"{part}, {how}" for part in PARTS for how in ("one batch", "one by one")}
    assert all(min(call()) > 0 for call in found.values())


@pytest.mark.parametrize("preset", ["tiny", "gpt-s", "hybrid-4m"])
def test_the_roofline_counts_every_weight_once(bundle: Bundle, preset: str) -> None:
    """Operations and bytes without attention: two for each number of each matrix that a position is multiplied with."""
    config = PRESETS[preset]
    model = random_model(config)
    used = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "fine" not in name)
    used -= model.embedding.weight.numel()  # looked up
    work = token_work(config, rows=3, positions=0)
    assert work.operations == 2 * 3 * used and work.weight_bytes == 2 * used and work.cache_bytes == 0
    longer = token_work(config, rows=3, positions=10**6)
    assert longer == token_work(config, rows=3, positions=config.window), "a window holds no more"


def test_a_frame_counts_the_depth_decoder_and_the_codec(bundle: Bundle) -> None:
    fine = sum(p.numel() for name, p in bundle.lm.fine.named_parameters() if p.dim() == 2 and "embed" not in name)
    sound = sum(p.numel() for p in bundle.codec.decoder.parameters() if p.dim() > 1)
    token, frame = token_work(bundle.lm.config, 2, 50), frame_work(bundle, 2, 50, 8)
    assert frame.weight_bytes - token.weight_bytes == 2 * (fine + sound)
    assert frame.cache_bytes == token.cache_bytes == 2 * 2 * 48 * 2 * (2 * 32 + 16)


def test_peaks_are_those_of_a_computer() -> None:
    assert 1e9 < peak_operations() < 1e13
    assert 1e8 < read_bandwidth(1 << 22) < 1e13


def test_the_limit_is_what_takes_longer() -> None:
    roof = Roof(operations=1e9)
    computing = roof.limit(Work(operations=1e9, weight_bytes=4096.0, cache_bytes=0.0))
    assert computing["limit_ms"] == pytest.approx(1e3) and computing["reading_ms"] < 1
    reading = roof.limit(Work(operations=1.0, weight_bytes=1e6, cache_bytes=1e6))
    assert reading["limit_ms"] == reading["reading_ms"] > reading["computing_ms"]


def test_other_presets_get_random_weights_that_a_bundle_could_hold(bundle: Bundle) -> None:
    other = bundle_of("gpt-s", bundle)
    assert other.codec is bundle.codec and not other.lm.config.mel and bundle_of("tiny", bundle) is bundle
    assert all(is_half(p.numpy()) for p in other.lm.parameters())


def test_ratios_divide_by_ours() -> None:
    names = (DYNAMIC, STATIC, UNCACHED, TORCH, OURS, HYBRID, LARGE)
    figures = {name: Figure.of([(float(i + 1), 2.0)]) for i, name in enumerate(names)}
    found = ratios(figures)
    assert found[f"{DYNAMIC} / {OURS}"] == {"wall": 1 / 5, "processor": 1.0}
    assert found[f"{LARGE} / {HYBRID}"]["wall"] == pytest.approx(7 / 6)
