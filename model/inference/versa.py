"""A bundle as a metric of VERSA, the toolkit of speech and audio metrics (github.com/wavlab-speech/versa).

Its scorer registers every ``register_*_metric`` that it finds in the package ``versa``, so the function below only has
to be put there before the scorer is made:

    import versa
    from model.inference.versa import register_whisper_gpt_metric
    versa.register_whisper_gpt_metric = register_whisper_gpt_metric

or be called with a registry of one's own. Then a scorer's configuration names the metric:

    - name: whisper_gpt
      bundle: weights/default

Only this module imports VERSA, which is in no package index and no dependency: whoever scores with VERSA has it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from versa.definition import BaseMetric, MetricCategory, MetricMetadata, MetricType

from model.checkpoint import load_bundle
from model.default_bundle import DEFAULT_BUNDLE
from model.inference.mono import mono_24khz
from model.inference.scoring import score

VERSA_RATE_HZ = 16_000  # what VERSA's own metrics take for the rate of samples that come without one
METADATA = MetricMetadata(
    name="whisper_gpt",
    category=MetricCategory.INDEPENDENT,
    metric_type=MetricType.DICT,
    requires_reference=False,
    requires_text=False,
    gpu_compatible=True,
    auto_install=False,
    dependencies=["model"],
    description="Likelihood of audio under a Whisper-GPT bundle's language model of codec tokens",
    paper_reference="https://arxiv.org/abs/2412.11449",
)


class WhisperGPTMetric(BaseMetric):  # type: ignore[misc]  # VERSA is not where the gate runs
    """How likely a clip is; no reference is needed.

    Its configuration: ``bundle``, the folder (``weights/default``), and ``use_gpu``, which the scorer sets.
    """

    def _setup(self) -> None:
        """Loads the weights. Raises BundleError."""
        device = "cuda" if self.config.get("use_gpu", False) else "cpu"
        self.bundle = load_bundle(Path(self.config.get("bundle", DEFAULT_BUNDLE)), device)

    def compute(
        self, predictions: Any, references: Any = None, metadata: dict[str, Any] | None = None
    ) -> dict[str, float]:
        """Scores one clip: samples (N,) at ``metadata["sample_rate"]``, floats from -1 to 1.

        Returns ``whisper_gpt_log_likelihood`` (nats, the sum; higher is likelier), ``whisper_gpt_nll`` (nats a token)
        and ``whisper_gpt_perplexity`` (both: lower is likelier). Raises TooShortError, a ValueError, and ValueError
        where there are no samples.
        """
        if predictions is None:
            raise ValueError("whisper_gpt scores samples, and there are none")
        rate = int((metadata or {}).get("sample_rate", VERSA_RATE_HZ))
        found = score(self.bundle, mono_24khz(torch.from_numpy(np.asarray(predictions, dtype=np.float32)), rate))
        return {
            "whisper_gpt_log_likelihood": found.log_likelihood,
            "whisper_gpt_nll": found.nll,
            "whisper_gpt_perplexity": found.perplexity,
        }

    def get_metadata(self) -> MetricMetadata:
        """What VERSA's scorer wants to know of a metric before it is made."""
        return METADATA


def register_whisper_gpt_metric(registry: Any) -> None:
    """Adds the metric to a ``versa.definition.MetricRegistry``."""
    registry.register(WhisperGPTMetric, METADATA, aliases=["whisper-gpt"])
