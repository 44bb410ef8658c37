"""A bundle as a model of SALMon, the suite for acoustic language models (arXiv 2409.07437, github.com/slp-rl/salmon).

SALMon asks a model for one number a clip, and counts how often the natural clip of a pair gets the higher one. Its
models are in no registry: a line is added to the function `InferenceModelFactory.get_model`,

    if config["model_type"] == "whisper-gpt": return SalmonModel(load_bundle(Path(config["bundle"])))

after which its `log_likelihood` and `to` find these. Duck-typed, so that SALMon is no dependency.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.inference.mono import mono_24khz
from model.inference.scoring import score

SALMON_RATE_HZ = 16_000  # SALMon passes no rate on; this is what its baselines take the samples for


class SalmonModel:
    """Scores clips as SALMon's baselines do.

    Args:
        bundle: the model.
        mean_nll: as in SALMon's configurations: the mean over the tokens instead of the sum. Clips of a pair may differ
            in length, and a sum then prefers the shorter one.
        sample_rate_hz: of the clips.
    """

    def __init__(self, bundle: Bundle, mean_nll: bool = False, sample_rate_hz: int = SALMON_RATE_HZ) -> None:
        self.bundle, self.mean_nll, self.sample_rate_hz = bundle, mean_nll, sample_rate_hz

    def log_likelihood(self, wavs: Sequence[Tensor]) -> Tensor:
        """Clips, (N,) or (channels, N) each, of any lengths -> (len(wavs),) float32, nats; higher is likelier.

        One after the other: padding would be heard. Raises TooShortError.
        """
        scores = [score(self.bundle, mono_24khz(wav, self.sample_rate_hz)) for wav in wavs]
        figures = [-one.nll if self.mean_nll else one.log_likelihood for one in scores]
        return torch.tensor(figures, dtype=torch.float32, device=self.bundle.device)

    def to(self, device: str | torch.device) -> "SalmonModel":
        self.bundle.to(device)
        return self

    def __str__(self) -> str:
        return f"whisper-gpt {self.bundle.name}"
