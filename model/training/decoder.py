"""Train a codec's decoder alone, adversarially: encoder and codebooks stay, and with them every token.

The codes are made once (`model.training.codes`), so that a step costs the decoder, the distances and the discriminator
only. The adversarial gradient is scaled to a share of the distances' gradient, as EnCodec's balancer does
(arXiv 2210.13438, section 3.4): the weight then means the same whatever the discriminator's size.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.bundle import tokeniser_sha256
from model.codec.codec import Codec
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES
from model.training.adversary import Adversary, AdversaryKind, make_discriminator
from model.training.codec import draw_codebooks
from model.training.codes import CodedClip, CodeSet, build_codes
from model.training.data import Corpus
from model.training.evaluate import intelligibility
from model.training.loop import Run, State, cosine_rate, step_rng
from model.training.losses import EnvelopeLoss, LoudnessLoss, SpectralLoss
from model.training.pitch import pitch_match

VALIDATION_CLIPS = 14  # of each kind


@dataclass(frozen=True)
class DecoderTraining:
    """Settings of a decoder run; what decides the result, hence kept with the run."""

    steps: int = 4000
    batch: int = 8
    frames: int = 40  # of a crop
    context: int = 16  # frames before the crop that the decoder hears and that are not judged
    rate: float = 2e-4
    warmup: int = 50
    seed: int = 0
    music_share: float = 0.25
    convergence_weight: float = 1.0
    envelope_weight: float = 1.0
    waveform_weight: float = 0.1
    loudness_weight: float = 0.3
    average: float = 0.995  # how much of the weights' moving average, which is what is exported, stays in a step
    adversary: AdversaryKind = "light"
    adversarial_from: int = 60  # step from which the decoder learns; until then the discriminator alone. -1 = never
    adversarial_share: float = 0.5  # norm of the adversarial gradient at the samples, of that of the distances
    adversarial_rate: float = 1e-3
    feature_weight: float = 2.0
    speech_hours: float = 2.5  # of training clips whose codes are made
    music_hours: float = 0.8
    bf16: bool = False


def coded_crops(
    codes: CodeSet, clips: list[CodedClip], frames: int, context: int, batch: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Random crops: codes (batch, context + frames, K) int64; samples (batch, 320 frames) of all but the context."""
    lengths = np.array([coded.frames for coded in clips], dtype=np.float64)
    width = codes.codes.shape[1]
    tokens = np.zeros((batch, context + frames, width), dtype=np.int64)
    samples = np.zeros((batch, frames * HOP_SAMPLES), dtype=np.float32)
    for row, pick in enumerate(rng.choice(len(clips), size=batch, p=lengths / lengths.sum())):
        coded = clips[pick]
        start = int(rng.integers(0, max(coded.frames - context - frames, 0) + 1))
        piece = codes.read(coded, start, context + frames)
        tokens[row, : len(piece)] = piece
        heard = codes.corpus.read(
            coded.clip, (start + context) * HOP_SAMPLES, max(len(piece) - context, 0) * HOP_SAMPLES
        )
        samples[row, : len(heard)] = heard
    return torch.from_numpy(tokens), torch.from_numpy(samples)


class DecoderTrainer:
    """Decoder, its moving average, discriminator, and one step; the state is everything that a resumed run needs."""

    def __init__(self, codec: Codec, training: DecoderTraining, codes: CodeSet, device: str = "cpu") -> None:
        torch.manual_seed(training.seed)
        self.training, self.codes, self.device = training, codes, device
        self.codec = codec.to(device)
        self.books = codec.codebooks().detach().to(device)  # (K, 1024, 128)
        self.average = copy.deepcopy(codec.decoder).requires_grad_(False)
        self.spectral, self.envelope = SpectralLoss().to(device), EnvelopeLoss().to(device)
        self.loudness = LoudnessLoss().to(device)
        self.optimizer = torch.optim.AdamW(
            codec.decoder.parameters(), training.rate, betas=(0.8, 0.99), weight_decay=0.01
        )
        self.adversary: Adversary | None = None
        if training.adversarial_from >= 0:
            judge = make_discriminator(training.adversary).to(device)
            self.adversary = Adversary(judge, training.adversarial_rate, training.feature_weight, training.bf16)
        self.step = 0

    def state(self) -> State:
        averaged = {f"decoder.{name}": tensor for name, tensor in self.average.state_dict().items()}
        state: State = {
            "codec": self.codec.state_dict() | averaged,  # what `model.training.export` takes
            "decoder": self.codec.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return state | ({"adversary": self.adversary.state()} if self.adversary else {})

    def load(self, state: State) -> None:
        self.codec.decoder.load_state_dict(state["decoder"])
        self.average.load_state_dict({name: state["codec"][f"decoder.{name}"] for name in self.average.state_dict()})
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary:
            self.adversary.load(state["adversary"])
        self.step = int(state["step"])

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Latents (B, 128, context + frames) of codes with 1, 2, 4 or 8 codebooks a row, and the samples (B, N)."""
        training = self.training
        of_music = int(rng.binomial(training.batch, training.music_share))
        speech, music = self.codes.split("train", "speech"), self.codes.split("train", "music")
        if not speech or not music:
            parts = [(speech or music, training.batch)]
        else:
            parts = [(speech, training.batch - of_music), (music, of_music)]
        drawn = [
            coded_crops(self.codes, clips, training.frames, training.context, count, rng)
            for clips, count in parts
            if count
        ]
        tokens = torch.cat([codes for codes, _ in drawn]).to(self.device)
        counts = torch.tensor([draw_codebooks(rng, tokens.shape[-1]) for _ in range(training.batch)])
        latents = torch.zeros(*tokens.shape[:2], self.books.shape[-1], device=self.device)
        for book in range(tokens.shape[-1]):
            heard = (counts > book).to(self.device)[:, None, None]
            latents += heard * self.books[book][tokens[:, :, book]]
        return latents.transpose(1, 2), torch.cat([samples for _, samples in drawn]).to(self.device)

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step of both sides; returns the losses."""
        training = self.training
        rng = step_rng(training.seed, step)
        latents, real = self.batch(rng)
        rate = cosine_rate(step, training.steps, training.rate, training.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=training.bf16):
            made = self.codec.decoder(latents)
        made = made[:, 0, training.context * HOP_SAMPLES :].float()
        heard = made.detach().requires_grad_()
        log_mel, convergence = self.spectral(heard, real)
        envelope = self.envelope(heard, real)
        loss = log_mel + training.convergence_weight * convergence + training.envelope_weight * envelope
        figures = {"log_mel": log_mel, "convergence": convergence, "envelope": envelope}
        if training.waveform_weight > 0:
            level = real.square().mean(1, keepdim=True).sqrt() + 0.01
            figures["waveform"] = ((heard - real).abs() / level).mean()
            loss = loss + training.waveform_weight * figures["waveform"]
        if training.loudness_weight > 0:
            figures["loudness"] = self.loudness(heard, real)
            loss = loss + training.loudness_weight * figures["loudness"]
        (gradient,) = torch.autograd.grad(loss, heard)
        if self.adversary is not None:
            judged = self.adversary.round(made, real)
            gradient = gradient + judged.scaled(gradient, training.adversarial_share)
            figures |= judged.figures()
            if step < training.adversarial_from:
                return {name: float(value.detach()) for name, value in (figures | {"loss": loss}).items()}
        self.optimizer.zero_grad(set_to_none=True)
        made.backward(gradient)
        norm = nn.utils.clip_grad_norm_(self.codec.decoder.parameters(), 1.0)
        self.optimizer.step()
        self._average(step)
        figures["loss"] = loss
        return {name: float(value.detach()) for name, value in figures.items()} | {"grad": float(norm), "rate": rate}

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = self.training.average
        for own, current in zip(self.average.parameters(), self.codec.decoder.parameters(), strict=True):
            own.lerp_(current, 1 - keep)

    @torch.no_grad()
    def validate(self, seconds: float = 4.0) -> dict[str, float]:
        """The averaged decoder on the validation speakers and pieces, at 8 codebooks (or as many as there are).

        Log-mel distance (nats), STOI, PESQ, and for speech the share of voiced frames whose pitch is right.
        """
        figures: dict[str, list[float]] = {}
        for kind in ("speech", "music"):
            for coded in self.codes.split("valid", kind)[:VALIDATION_CLIPS]:
                frames = min(coded.frames, round(seconds * FRAME_RATE_HZ))
                codes = torch.from_numpy(self.codes.read(coded, 0, frames).astype(np.int64)).to(self.device)
                made = self.average(self.codec.dequantize(codes.T[None]))[0, 0]
                real = torch.from_numpy(self.codes.corpus.read(coded.clip, 0, frames * HOP_SAMPLES)).to(self.device)
                found = {"log_mel": float(self.spectral(made[None], real[None])[0])}
                found |= intelligibility(made.cpu(), real.cpu())
                if kind == "speech" and (match := pitch_match(made, real)) is not None:
                    found["pitch"] = match
                for name, value in found.items():
                    figures.setdefault(f"valid_{kind}_{name}", []).append(value)
        return {name: sum(values) / len(values) for name, values in figures.items()}


def train_decoder(
    codec: Codec, training: DecoderTraining, corpus: Corpus, out: Path, device: str = "cpu"
) -> Iterator[int]:
    """Train, or go on with, the decoder of the run in ``out``; yields the number of steps done.

    ``codec`` is as it is served (`model.training.export.find_codec`): its encoder and codebooks stay to the bit. The
    result is ``out/checkpoint.pt``, from which `model.training.export.export_codec` makes a codec.
    """
    settings = {
        "config": codec.config.to_dict(),
        "tokeniser": tokeniser_sha256(codec),
        "training": json.loads(json.dumps(asdict(training))),
        "corpus": corpus.folder.name,
    }
    run = Run(out, settings)
    hours = {"speech": training.speech_hours, "music": training.music_hours}
    codes = build_codes(corpus, codec, hours, out / "codes", device)
    trainer = DecoderTrainer(codec, training, codes, device)
    state = run.load()
    if state is not None:
        trainer.load(state)
    yield from run.steps(
        trainer.step, training.steps, trainer.train_step, trainer.state, validate=trainer.validate, validate_every=500
    )
