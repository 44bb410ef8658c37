"""Discriminators that teach a decoder what spectral distances do not measure, and the game played against them.

Two kinds. ``package`` is the `encodec` package's MS-STFT discriminator (arXiv 2210.13438, section 3.4): 1.8 M weights,
for a GPU. ``light`` is made for a CPU: narrow 2-D convolutions over magnitude-compressed STFTs, strided over frequency
from the first layer on, and, in the manner of HiFi-GAN (arXiv 2010.05646), narrow convolutions over the waveform
folded by a few periods, which see the phase.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from model.codec.encodec_import import import_encodec
from model.training.configs import AdversaryKind, CodecTraining, DecoderTraining
from model.training.loop import State

LEAK = 0.1
Judgement = tuple[list[Tensor], list[list[Tensor]]]  # logits of each discriminator, and the features of its layers


class SpectrumDiscriminator(nn.Module):
    """Judges one STFT resolution: (B, N) -> logits (B, 1, T', F'), features."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.window: Tensor
        widths = (2, channels, channels, channels, channels)
        strides, dilations = (4, 2, 2, 2), (1, 1, 2, 4)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 9), stride=(1, stride), dilation=(dilation, 1), padding=(dilation, 4)))
            for a, b, stride, dilation in zip(widths[:-1], widths[1:], strides, dilations, strict=True)
        )
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def _picture(self, samples: Tensor) -> Tensor:
        """Real and imaginary part with the magnitude to the power 0.3, so that quiet parts count: (B, 2, T, F)"""
        size = len(self.window)
        spectrum = torch.stft(samples, size, size // 4, window=self.window, center=False, return_complex=True)
        parts = torch.stack([spectrum.real, spectrum.imag], 1).transpose(2, 3) * (2 / float(self.window.sum()))
        return parts * (parts.square().sum(1, keepdim=True) + 1e-8) ** -0.35

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self._picture(samples)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAK)
            features.append(x)
        return self.last(x), features


class PeriodDiscriminator(nn.Module):
    """Judges the waveform folded by a period: (B, N) -> logits (B, 1, N', period), features."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, channels, 2 * channels, 4 * channels, 4 * channels)
        strides = (3, 3, 3, 1)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), stride=(stride, 1), padding=(2, 0)))
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        whole = samples.shape[-1] // self.period * self.period
        x = samples[:, None, :whole].reshape(len(samples), 1, -1, self.period)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAK)
            features.append(x)
        return self.last(x), features


class LightDiscriminator(nn.Module):
    """Several resolutions and periods side by side: (B, N) -> logits and features of each."""

    def __init__(
        self, windows: Sequence[int] = (2048, 1024, 512), periods: Sequence[int] = (3, 7), channels: int = 16
    ) -> None:
        super().__init__()
        self.judges = nn.ModuleList(
            [SpectrumDiscriminator(window, channels) for window in windows]
            + [PeriodDiscriminator(period, channels) for period in periods]
        )

    def forward(self, samples: Tensor) -> Judgement:
        judged = [judge(samples) for judge in self.judges]
        return [logits for logits, _ in judged], [features for _, features in judged]


class PackageDiscriminator(nn.Module):
    """The `encodec` package's discriminator, on samples (B, N)."""

    def __init__(self) -> None:
        super().__init__()
        import_encodec()
        from encodec.msstftd import MultiScaleSTFTDiscriminator  # after the stand-in

        self.inner = MultiScaleSTFTDiscriminator(filters=32)

    def forward(self, samples: Tensor) -> Judgement:
        logits, features = self.inner(samples[:, None])
        return logits, features


def make_discriminator(kind: AdversaryKind) -> nn.Module:
    """A discriminator of either kind, (B, N) -> logits and features."""
    return LightDiscriminator() if kind == "light" else PackageDiscriminator()


def hinge_real_fake(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """What the discriminators minimise: mean over them of relu(1 - real) + relu(1 + fake)."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()


def hinge_made(fake: Sequence[Tensor]) -> Tensor:
    """What the decoder minimises: mean of -fake."""
    return torch.stack([-f.mean() for f in fake]).mean()


def feature_distance(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over layers of the features' L1 distance, relative to their size."""
    pairs = [(r.detach(), f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return torch.stack([(f - r).abs().mean() / r.abs().mean().clamp_min(1e-4) for r, f in pairs]).mean()


@dataclass(frozen=True)
class Round:
    """What one round gives: the pull on the samples, and the figures."""

    pull: Tensor  # (B, N): gradient of the decoder's adversarial loss at the samples that it made
    fooled: Tensor  # the decoder's hinge loss
    features: Tensor  # distance of the features
    judged: Tensor  # the discriminators' hinge loss

    def scaled(self, gradient: Tensor, share: float) -> Tensor:
        """The pull with ``share`` of the norm of the gradient of the other losses, as EnCodec's balancer does."""
        scaled: Tensor = self.pull * (share * gradient.norm() / self.pull.norm().clamp_min(1e-12))
        return scaled

    def figures(self) -> dict[str, Tensor]:
        return {"adversarial": self.fooled, "features": self.features, "discriminator": self.judged}


class Adversary:
    """A discriminator with its optimiser; both sides of a round share one forward pass of each signal."""

    def __init__(
        self,
        discriminator: nn.Module,
        rate: float,
        feature_weight: float = 1.0,
        bf16: bool = False,
        betas: tuple[float, float] = CodecTraining.adversarial_betas,
        clip_norm: float = CodecTraining.clip_norm,
    ) -> None:
        self.discriminator, self.feature_weight, self.bf16, self.clip_norm = (
            discriminator,
            feature_weight,
            bf16,
            clip_norm,
        )
        self.optimizer = torch.optim.AdamW(discriminator.parameters(), lr=rate, betas=betas, weight_decay=0.0)

    @classmethod
    def of(cls, training: CodecTraining | DecoderTraining, device: str) -> "Adversary":
        """The one that a training's settings name."""
        return cls(
            make_discriminator(training.adversary).to(device),
            training.adversarial_rate,
            training.feature_weight,
            training.bf16,
            training.adversarial_betas,
            training.clip_norm,
        )

    def round(self, made: Tensor, real: Tensor) -> Round:
        """Made and real samples (B, N): what pulls the made ones towards the real; the discriminator takes its step.

        Decoder and discriminator are judged by the same weights, those before the step: both gradients come from one
        graph, which saves a third of the work.
        """
        made = made.detach().requires_grad_()
        with torch.autocast(made.device.type, torch.bfloat16, enabled=self.bf16):
            real_logits, real_features = self.discriminator(real)
            fake_logits, fake_features = self.discriminator(made)
        real_logits, fake_logits = ([x.float() for x in logits] for logits in (real_logits, fake_logits))
        fooled = hinge_made(fake_logits)
        features = feature_distance(real_features, fake_features).float()
        judged = hinge_real_fake(real_logits, fake_logits)
        (pull,) = torch.autograd.grad(fooled + self.feature_weight * features, made, retain_graph=True)
        parameters = list(self.discriminator.parameters())
        for parameter, own in zip(parameters, torch.autograd.grad(judged, parameters), strict=True):
            parameter.grad = own
        nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        return Round(pull, fooled.detach(), features.detach(), judged.detach())

    def state(self) -> State:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: State) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
