"""Train the codec: encoder, residual quantiser and decoder together.

The recipe follows what was measured (docs/log.md): LSUV initialisation, quantisers from k-means, dead codes
restarted from current residuals, codebooks dropped at random so that each one has work, reconstruction losses from the
first step, and, on request, a discriminator later on (`model.training.discriminator`).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.decoders.frame import CausalConv
from model.constants import HOP_SAMPLES, LATENT_DIM, MEL_BANDS, SAMPLE_RATE_HZ, VOCABULARY
from model.lm.mel import LogMel
from model.training.configs import CodecTraining as CodecTraining
from model.training.configs import Shares, before
from model.training.corpus import Clip, Corpus, DataError
from model.training.discriminator import Adversary
from model.training.loop import Run, State, cosine_rate, step_rng
from model.training.losses import EnvelopeLoss, SpectralLoss


def crops(
    corpus: Corpus,
    clips: list[Clip],
    frames: int,
    batch: int,
    rng: np.random.Generator,
    gain_db: tuple[float, float] | None = None,
) -> Tensor:
    """A batch of random crops, (batch, 320 frames), of clips drawn by their length.

    gain_db: from and to where a gain is drawn per crop, and with it a polarity; None leaves them as they are.
    """
    lengths = np.array([clip.length for clip in clips], dtype=np.float64)
    size = frames * HOP_SAMPLES
    rows = np.zeros((batch, size), dtype=np.float32)
    for row, pick in enumerate(rng.choice(len(clips), size=batch, p=lengths / lengths.sum())):
        clip = clips[pick]
        start = int(rng.integers(0, max(clip.length - size, 0) + 1))
        piece = corpus.read(clip, start, size)
        rows[row, : len(piece)] = piece
    if gain_db is not None:
        gain = 10 ** (rng.uniform(*gain_db, (batch, 1)) / 20) * rng.choice([-1.0, 1.0], (batch, 1))
        rows = np.clip(rows * gain.astype(np.float32), -1.0, 1.0)
    return torch.from_numpy(rows)


def mixed_crops(corpus: Corpus, training: CodecTraining, rng: np.random.Generator) -> Tensor:
    """A training batch with ``music_share`` of its rows from music, where the corpus has both kinds."""
    frames = round(training.seconds * SAMPLE_RATE_HZ / HOP_SAMPLES)
    speech, music = corpus.split("train", "speech"), corpus.split("train", "music")
    if not speech or not music:
        return crops(corpus, speech or music, frames, training.batch, rng, training.crop_gain_db)
    of_music = int(rng.binomial(training.batch, training.music_share))
    parts = [(speech, training.batch - of_music), (music, of_music)]
    return torch.cat(
        [crops(corpus, clips, frames, count, rng, training.crop_gain_db) for clips, count in parts if count]
    )


@torch.no_grad()
def lsuv(part: nn.Module, x: Tensor) -> Tensor:
    """Scale each convolution so that its output has unit deviation on a real batch; PyTorch's init starves SEANet.

    Returns what the part, an encoder or a decoder, then makes of ``x``.

    Layer-sequential unit-variance initialisation (arXiv 1511.06422). Works in the order of execution; biases become 0.
    ConvNeXt blocks keep their init (they are normalised inside).
    """

    def scale(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv1d | nn.ConvTranspose1d)
        deviation = output.std().clamp_min(1e-8)
        module.weight /= deviation
        return output / deviation

    hooks = []
    for module in part.modules():
        plain = isinstance(module, nn.Conv1d | nn.ConvTranspose1d)
        if plain and not (isinstance(module, CausalConv) and module.groups > 1):
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            hooks.append(module.register_forward_hook(scale))
    out: Tensor = part(x)
    for hook in hooks:
        hook.remove()
    return out


@torch.no_grad()
def initialise(codec: Codec, samples: Tensor) -> None:
    """Both ends of a codec by `lsuv`, on samples (B, N)."""
    lsuv(codec.decoder, lsuv(codec.encoder, samples[:, None]))
    codec.decoder.output_layer.weight *= 0.1  # the first output is quiet, so that the first gradients are not


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, rounds: int = CodecTraining.kmeans_rounds) -> Tensor:
    """Lloyd's k-means on (N, d) -> (clusters, d), with `torch.cdist`: no N x clusters x d array."""
    generator = torch.Generator().manual_seed(0)
    means = points[torch.randperm(len(points), generator=generator)[:clusters]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, means).argmin(1)
        counts = torch.bincount(nearest, minlength=clusters)
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        empty = counts == 0
        means = torch.where(empty[:, None], means, sums / counts.clamp_min(1)[:, None])
        spare = torch.randint(0, len(points), (int(empty.sum()),), generator=generator)
        means[empty] = points[spare]
    return means


@torch.no_grad()
def init_quantizer(codec: Codec, latents: Tensor, expected: float, rounds: int = CodecTraining.kmeans_rounds) -> None:
    """Each codebook from k-means on the residuals of the one before: latents (N, 128), N >= 1024.

    ``expected`` is the mean number of vectors that a code gets in a batch; the running counts start there.
    """
    residual = latents
    for layer in track(codec.quantizer.vq.layers, "k-means, codebook by codebook", transient=True):
        book = layer._codebook
        means = kmeans(residual, VOCABULARY, rounds)
        book.embed.copy_(means)
        book.cluster_size.fill_(expected)
        book.embed_avg.copy_(means * expected)
        residual = residual - means[torch.cdist(residual, means).argmin(1)]


@torch.no_grad()
def restart_dead_codes(codec: Codec, latents: Tensor, expected: float, share: float, generator: torch.Generator) -> int:
    """Move codes that hardly any vector uses to current residuals; returns how many.

    latents: (B, 128, T). A code is dead when a batch gives it less than ``share`` of the ``expected`` vectors.
    """
    residual = latents.transpose(1, 2).reshape(-1, LATENT_DIM)
    restarted = 0
    for layer in codec.quantizer.vq.layers:
        book = layer._codebook
        dead = book.cluster_size < share * expected
        count = int(dead.sum())
        nearest = torch.cdist(residual, book.embed).argmin(1)
        following = residual - book.embed[nearest]
        if count:
            picks = torch.randint(0, len(residual), (count,), generator=generator).to(residual.device)
            book.embed[dead] = residual[picks]
            book.cluster_size[dead] = expected  # a new code gets time to find its vectors
            book.embed_avg[dead] = residual[picks] * expected
            restarted += count
        residual = following
    return restarted


def effective_dimensions(latents: Tensor) -> Tensor:
    """Participation ratio of the covariance of (N, d) vectors, (tr C)^2 / tr C^2: 1 for a line, d for a sphere."""
    centred = latents - latents.mean(0)
    covariance = centred.T @ centred / len(latents)
    ratio: Tensor = covariance.diagonal().sum() ** 2 / (covariance**2).sum()
    return ratio


def draw_codebooks(rng: np.random.Generator, codebooks: int, depths: Shares) -> int:
    """How many codebooks this step's decoder hears (quantiser dropout)."""
    counts, weights = zip(*depths, strict=True)
    return min(int(rng.choice(counts, p=weights)), codebooks)


class CodecTrainer:
    """Model, optimisers and one step; the state is everything that a resumed run needs."""

    def __init__(self, config: CodecConfig, training: CodecTraining, corpus: Corpus, device: str = "cpu") -> None:
        torch.manual_seed(training.seed)
        self.training, self.corpus, self.device = training, corpus, device
        self.codec = Codec(config)
        self.spectral = SpectralLoss(training.spectral_windows, training.spectral_floor).to(device)
        self.measure = SpectralLoss().to(device)
        self.envelope = EnvelopeLoss(training.envelope_heard, training.envelope_stride).to(device)
        self.step = 0
        self.adversary: Adversary | None = None
        if training.adversarial_from >= 0:
            self.adversary = Adversary.of(training, device)
        self.mel = LogMel().to(device)
        self.mel_head = nn.Linear(LATENT_DIM, MEL_BANDS).to(device)  # for training only: not part of the codec
        self.codec.to(device)
        self.optimizer = torch.optim.AdamW(
            [*self.codec.parameters(), *self.mel_head.parameters()],
            lr=training.rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
        )

    def initialise(self) -> None:
        """LSUV on one batch, then k-means on latents. For a run that starts from nothing."""
        rng = step_rng(self.training.seed, 2**31)
        batch = mixed_crops(self.corpus, self.training, rng)
        initialise(self.codec, batch.to(self.device))
        self.fit_quantizer(rng)

    def fit_quantizer(self, rng: np.random.Generator) -> None:
        """All codebooks anew, from k-means on the latents of about ``kmeans_seconds`` of training audio."""
        rounds = max(1, round(self.training.kmeans_seconds / (self.training.batch * self.training.seconds)))
        with torch.no_grad():
            latents = [
                self.codec.encoder(mixed_crops(self.corpus, self.training, rng).to(self.device)[:, None])
                for _ in track(range(rounds), "latents for k-means", transient=True)
            ]
        flat = torch.cat(latents).transpose(1, 2).reshape(-1, LATENT_DIM)
        init_quantizer(self.codec, flat, self._expected(), self.training.kmeans_rounds)

    def _expected(self) -> float:
        return self.training.batch * self.training.seconds * SAMPLE_RATE_HZ / HOP_SAMPLES / VOCABULARY

    def state(self) -> State:
        state: State = {
            "codec": self.codec.state_dict(),
            "mel_head": self.mel_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.adversary is not None:
            state["adversary"] = self.adversary.state()
        return state

    def load(self, state: State) -> None:
        self.codec.load_state_dict(state["codec"])
        self.mel_head.load_state_dict(state["mel_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None and "adversary" in state:
            self.adversary.load(state["adversary"])
        self.step = int(state["step"])

    def _reconstruct(self, samples: Tensor, rng: np.random.Generator, step: int) -> tuple[Tensor, Tensor]:
        """Samples (B, N) -> reconstruction (B, N), and the weighted auxiliary losses."""
        training = self.training
        codebooks = draw_codebooks(rng, self.codec.config.codebooks, self.training.depths)
        low = torch.autocast(samples.device.type, torch.bfloat16, enabled=training.bf16)
        if 0 <= training.freeze_encoder_from <= step:
            with torch.no_grad(), low:
                latents = self.codec.encoder(samples[:, None])
            with torch.no_grad():
                quantized = self.codec.dequantize(self.codec.quantize(latents.float())[:, :codebooks])
            with low:
                made = self.codec.decoder(quantized)
            return made[:, 0].float(), samples.new_zeros(())
        with low:
            latents = self.codec.encoder(samples[:, None])
        latents = latents.float()
        if (step + 1) % training.restart_every == 0:
            generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
            restart_dead_codes(self.codec, latents.detach(), self._expected(), training.dead_code_share, generator)
        quantized, _, commitment = self.codec.quantizer.vq(latents, n_q=codebooks)
        if training.unquantized > 0:
            bypass = torch.from_numpy(rng.random(len(samples)) < training.unquantized).to(samples.device)
            quantized = torch.where(bypass[:, None, None], latents, quantized)
        with low:
            made = self.codec.decoder(quantized)
        flat = latents.transpose(1, 2).reshape(-1, LATENT_DIM)
        shortfall = F.relu(math.log(training.dimensions) - torch.log(effective_dimensions(flat)))
        regular = training.commitment * commitment.mean() + training.spread * shortfall
        if training.mel_weight > 0:
            guess = self.mel_head(quantized.transpose(1, 2))  # (B, T, 64)
            regular = regular + training.mel_weight * (guess - self.mel(samples)).abs().mean()
        return made[:, 0].float(), regular

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        training = self.training
        rng = step_rng(training.seed, step)
        samples = mixed_crops(self.corpus, training, rng).to(self.device)
        rate = cosine_rate(step, training.steps, training.rate, training.warmup, training.rate_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if step in training.kmeans_at:
            self.fit_quantizer(step_rng(training.seed, 2**30 + step))
        self.codec.train()
        made, regular = self._reconstruct(samples, rng, step)
        heard = made.detach().requires_grad_()  # the gradient at the samples is made first, then goes through the model
        log_mel, convergence = self.spectral(heard, samples)
        level = samples.square().mean(1, keepdim=True).sqrt() + training.waveform_quiet
        waveform = ((heard - samples).abs() / level).mean()
        distance = log_mel + convergence + training.waveform_weight * waveform
        envelope = distance.new_zeros(())
        if training.envelope_weight > 0:
            envelope = self.envelope(heard, samples)
            distance = distance + training.envelope_weight * envelope
        figures = {
            "loss": distance + regular,
            "envelope": envelope,
            "log_mel": log_mel,
            "convergence": convergence,
            "waveform": waveform,
            "regular": regular,
        }
        (gradient,) = torch.autograd.grad(distance, heard)
        if self.adversary is not None and step >= training.adversarial_from:
            judged = self.adversary.round(made, samples)
            gradient = gradient + judged.scaled(gradient, training.adversarial_share)
            figures |= judged.figures()
        self.optimizer.zero_grad(set_to_none=True)
        loss: Tensor = (made * gradient).sum() + regular
        loss.backward()  # the sum's gradient at the samples is the one just made
        norm = nn.utils.clip_grad_norm_(self.codec.parameters(), training.clip_norm)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in figures.items()} | {"grad": float(norm), "rate": rate}

    @torch.no_grad()
    def validate(self, batches: int = 4) -> dict[str, float]:
        """On the validation speakers and pieces: log-mel distance at 1, 2, 4, 8 codebooks, entropy of the first."""
        self.codec.eval()
        clips = self.corpus.split("valid") or self.corpus.split("train")
        rng = step_rng(self.training.seed, 2**31 + 1)
        figures: dict[str, list[float]] = {}
        first: list[Tensor] = []
        for _ in range(batches):
            samples = crops(self.corpus, clips, 150, 8, rng).to(self.device)
            codes = self.codec.encode(samples)
            first.append(codes[:, 0].flatten())
            for count in (1, 2, 4, 8):
                if count <= self.codec.config.codebooks:
                    distance, _ = self.measure(self.codec.decode(codes[:, :count]), samples)
                    figures.setdefault(f"valid_log_mel_{count}", []).append(float(distance))
        share = torch.bincount(torch.cat(first), minlength=VOCABULARY).float()
        share = share[share > 0] / share.sum()
        entropy = float(-(share * share.log()).sum())
        return {name: sum(values) / len(values) for name, values in figures.items()} | {"valid_entropy": entropy}


def train_codec(
    config: CodecConfig, training: CodecTraining, corpus: Corpus, out: Path, device: str = "cpu"
) -> Iterator[int]:
    """Train, or go on with, the codec of the run in ``out``; yields the number of steps done.

    The result is ``out/checkpoint.pt``; `model.training.export` makes a bundle of it. Raises DataError for a `harmonic`
    decoder: its reader is taught apart.
    """
    if config.decoder == "harmonic":
        raise DataError("train a `frame` decoder first, and then `train decoder` with oscillators")
    run = Run(
        out,
        {
            "config": config.to_dict(),
            "training": json.loads(json.dumps(asdict(training))),
            "corpus": corpus.folder.name,
        },
        {"training": before(CodecTraining)},
    )
    trainer = CodecTrainer(config, training, corpus, device)
    state = run.load()
    if state is None and training.start_from:
        weights = torch.load(training.start_from, map_location="cpu", weights_only=True)
        trainer.codec.load_state_dict(weights["codec"])
    elif state is None:
        trainer.initialise()
    else:
        trainer.load(state)
    yield from run.steps(
        trainer.step, training.steps, trainer.train_step, trainer.state, validate=trainer.validate, validate_every=500
    )
