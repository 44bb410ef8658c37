"""The bundle as a metric of VERSA: what its registry, its factory and its scorer do with one.

VERSA is in no package index. Without it the tests run against the part of its interface that a metric meets, written
down here from its documentation; ``VERSA=CLONE`` in the environment, a clone of github.com/wavlab-speech/versa, has
them run against its own `versa/definition.py`, and, where its packages are installed, through its scorer.
"""

import importlib
import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from torch import Tensor

from model.checkpoint import load_bundle
from model.inference.scoring import TooShortError, score

CLONE = os.environ.get("VERSA")


class Category(Enum):
    INDEPENDENT = "independent"


class Type(Enum):
    DICT = "dict"


@dataclass
class Metadata:
    """The fields that a metric may tell, no others."""

    name: str
    category: Category
    metric_type: Type
    requires_reference: bool
    requires_text: bool
    gpu_compatible: bool
    auto_install: bool
    dependencies: list[str]
    description: str
    paper_reference: str | None = None
    implementation_source: str | None = None


class Base(ABC):
    """A metric is made with its configuration, and sets itself up then."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}
        self._setup()

    @abstractmethod
    def _setup(self) -> None: ...

    @abstractmethod
    def compute(self, predictions: Any, references: Any = None, metadata: dict[str, Any] | None = None) -> Any: ...

    @abstractmethod
    def get_metadata(self) -> Metadata: ...


class Registry:
    """Classes by name and by alias."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[type, Metadata]] = {}

    def register(self, metric_class: type, metadata: Metadata, aliases: list[str] | None = None) -> None:
        for name in (metadata.name, *(aliases or [])):
            self._found[name] = metric_class, metadata

    def get_metric(self, name: str) -> type:
        return self._found[name][0]

    def get_metadata(self, name: str) -> Metadata:
        return self._found[name][1]


def _definition() -> ModuleType:
    """VERSA's own module from the clone, or the above in its place."""
    if CLONE is not None:
        spec = importlib.util.spec_from_file_location("versa.definition", Path(CLONE) / "versa" / "definition.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    module = ModuleType("versa.definition")
    vars(module).update(
        BaseMetric=Base, MetricCategory=Category, MetricMetadata=Metadata, MetricType=Type, MetricRegistry=Registry
    )
    return module


@pytest.fixture
def definition(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """What `model.inference.versa` imports, for as long as a test runs."""
    module = _definition()
    monkeypatch.setitem(sys.modules, "versa", ModuleType("versa"))
    monkeypatch.setitem(sys.modules, "versa.definition", module)
    yield module
    sys.modules.pop("model.inference.versa", None)


@pytest.fixture
def registry(definition: ModuleType) -> Any:
    registry = definition.MetricRegistry()
    importlib.import_module("model.inference.versa").register_whisper_gpt_metric(registry)
    return registry


@pytest.fixture
def metric(registry: Any, saved_bundle: Path) -> Any:
    """As VERSA's factory makes it: the class by its name, and the entry of the scorer's configuration."""
    return registry.get_metric("whisper_gpt")({"name": "whisper_gpt", "bundle": str(saved_bundle), "use_gpu": False})


def test_it_is_a_metric_of_versas(definition: ModuleType, registry: Any, metric: Any) -> None:
    assert isinstance(metric, definition.BaseMetric)
    assert registry.get_metric("whisper-gpt") is type(metric)
    told = metric.get_metadata()
    assert registry.get_metadata("whisper_gpt") == told
    assert told.category is definition.MetricCategory.INDEPENDENT and told.metric_type is definition.MetricType.DICT
    assert not (told.requires_reference or told.requires_text)
    for dependency in told.dependencies:
        importlib.import_module(dependency)


def test_figures_are_those_of_the_score(metric: Any, saved_bundle: Path, speech_like: Tensor) -> None:
    wav = speech_like[:30_000].numpy()
    expected = score(load_bundle(saved_bundle), torch.from_numpy(wav))
    for samples in (wav, wav.astype(np.float64)):  # VERSA hands over float64
        got = metric.compute(samples, None, {"key": "a", "sample_rate": 24_000, "text": None})
        assert got == pytest.approx(
            {
                "whisper_gpt_log_likelihood": expected.log_likelihood,
                "whisper_gpt_nll": expected.nll,
                "whisper_gpt_perplexity": expected.perplexity,
            }
        )
        assert all(type(value) is float for value in got.values()), "a summary counts numbers alone"


def test_samples_without_a_rate_are_at_16_khz(metric: Any, saved_bundle: Path, speech_like: Tensor) -> None:
    wav = speech_like[:30_000].numpy()
    heard = torch.from_numpy(np.asarray(soxr.resample(wav, 16_000, 24_000), dtype=np.float32))
    expected = score(load_bundle(saved_bundle), heard).nll
    for metadata in (None, {}, {"sample_rate": 16_000}):
        assert metric.compute(wav, metadata=metadata)["whisper_gpt_nll"] == pytest.approx(expected)


def test_what_cannot_be_scored_is_a_value_error(metric: Any) -> None:
    with pytest.raises(ValueError, match="there are none"):
        metric.compute(None)
    with pytest.raises(TooShortError):
        metric.compute(np.zeros(100), None, {"sample_rate": 24_000})


def _scores_by_its_scorer() -> bool:
    return CLONE is not None and all(importlib.util.find_spec(name) for name in ("kaldiio", "tqdm", "yaml"))


if _scores_by_its_scorer():  # nothing to skip where there is no VERSA: the tests above say all that can be said then

    def test_through_its_scorer(
        monkeypatch: pytest.MonkeyPatch, saved_bundle: Path, speech_like: Tensor, tmp_path: Path
    ) -> None:
        """Two files, one too short: its scores are written, and the other's are none."""
        monkeypatch.chdir(tmp_path)  # it makes a folder of caches where it runs
        monkeypatch.syspath_prepend(CLONE)
        shared = importlib.import_module("versa.scorer_shared")
        versa = importlib.import_module("versa")
        adapter = importlib.import_module("model.inference.versa")
        monkeypatch.setattr(versa, "register_whisper_gpt_metric", adapter.register_whisper_gpt_metric, raising=False)
        for name, count in (("long", 48_000), ("short", 900)):
            soundfile.write(tmp_path / f"{name}.wav", speech_like[:count].numpy(), 24_000, subtype="FLOAT")
        scorer = shared.VersaScorer()
        suite = scorer.load_metrics([{"name": "whisper_gpt", "bundle": str(saved_bundle)}], use_gt=False)
        files = {name: str(tmp_path / f"{name}.wav") for name in ("long", "short")}
        rows = scorer.score_utterances(files, suite, io="soundfile", output_file=str(tmp_path / "scores.jsonl"))
        (long,) = (row for row in rows if row["key"] == "long")
        expected = score(load_bundle(saved_bundle), speech_like[:48_000])
        assert long["whisper_gpt_nll"] == pytest.approx(expected.nll, rel=1e-6)
        assert not any(row.get("whisper_gpt_nll") for row in rows if row["key"] == "short")
