"""Train a codec's decoder alone, adversarially: encoder and codebooks stay, and with them every token.

The codes are made once (`model.training.code_set`), so that a step costs the decoder, the distances and the
discriminator only. The adversarial gradient is scaled to a share of the distances' gradient, as EnCodec's balancer does
(arXiv 2210.13438, section 3.4): the weight then means the same whatever the discriminator's size.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint import tokeniser_sha256
from model.codec.codec import Codec
from model.codec.decoders.harmonic import HarmonicDecoder
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES
from model.training.code_set import CodedClip, CodeSet, build_codes
from model.training.configs import DecoderTraining as DecoderTraining
from model.training.configs import before
from model.training.corpus import Corpus
from model.training.discriminator import Adversary
from model.training.evaluate import intelligibility
from model.training.loop import Run, State, cosine_rate, step_rng
from model.training.losses import EnvelopeLoss, LoudnessLoss, SpectralLoss
from model.training.pitch import PitchTracker, pitch_match
from model.training.pitch_targets import heard_pitch, pitch_distance, share_distance, with_oscillators
from model.training.train_codec import draw_codebooks

VALIDATION_CLIPS = 14  # of each kind


class Batch(NamedTuple):
    """Crops of one step."""

    latents: Tensor  # (B, 128, context + frames): of 1, 2, 4 or 8 codebooks a row
    real: Tensor  # (B, 320 frames): without the context
    speech: Tensor  # (B,) bool
    told: Tensor  # (B,) bool: rows that sing at the real pitch


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
        self.spectral = SpectralLoss(training.spectral_windows, training.spectral_floor).to(device)
        self.measure = SpectralLoss().to(device)
        self.envelope = EnvelopeLoss(training.envelope_heard, training.envelope_stride).to(device)
        self.loudness = LoudnessLoss(training.loudness_level_db, training.loudness_masking, training.loudness_added).to(
            device
        )
        self.tracker = PitchTracker.of(training)
        self.optimizer = torch.optim.AdamW(
            codec.decoder.parameters(), training.rate, betas=training.betas, weight_decay=training.weight_decay
        )
        self.reader_optimizer: torch.optim.Optimizer | None = None
        self.harmonic: HarmonicDecoder | None = None  # the decoder, where it is of that kind: it has a reader to teach
        if codec.config.decoder == "harmonic":
            self.harmonic = cast(HarmonicDecoder, codec.decoder)
            self.reader_optimizer = torch.optim.AdamW(
                self.harmonic.reader.parameters(),
                training.reader_rate,
                betas=training.reader_betas,
                weight_decay=training.reader_weight_decay,
            )
        self.adversary: Adversary | None = None
        if training.adversarial_from >= 0:
            self.adversary = Adversary.of(training, device)
        self.step = 0

    def state(self) -> State:
        averaged = {f"decoder.{name}": tensor for name, tensor in self.average.state_dict().items()}
        state: State = {
            "codec": self.codec.state_dict() | averaged,  # what `model.training.export` takes
            "decoder": self.codec.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.reader_optimizer:
            state["reader_optimizer"] = self.reader_optimizer.state_dict()
        return state | ({"adversary": self.adversary.state()} if self.adversary else {})

    def load(self, state: State) -> None:
        self.codec.decoder.load_state_dict(state["decoder"])
        self.average.load_state_dict({name: state["codec"][f"decoder.{name}"] for name in self.average.state_dict()})
        self.optimizer.load_state_dict(state["optimizer"])
        if self.reader_optimizer:
            self.reader_optimizer.load_state_dict(state["reader_optimizer"])
        if self.adversary:
            self.adversary.load(state["adversary"])
        self.step = int(state["step"])

    def batch(self, rng: np.random.Generator, rows: int, frames: int) -> Batch:
        """Random crops of so many rows and frames, with as many codebooks as training draws."""
        training = self.training
        of_music = int(rng.binomial(rows, training.music_share))
        speech, music = self.codes.split("train", "speech"), self.codes.split("train", "music")
        if not speech or not music:
            of_music = 0 if speech else rows
        parts = [(speech, rows - of_music), (music, of_music)]
        drawn = [
            coded_crops(self.codes, clips, frames, training.context, count, rng) for clips, count in parts if count
        ]
        tokens = torch.cat([codes for codes, _ in drawn]).to(self.device)
        counts = torch.tensor([draw_codebooks(rng, tokens.shape[-1], self.training.depths) for _ in range(rows)])
        latents = torch.zeros(*tokens.shape[:2], self.books.shape[-1], device=self.device)
        for book in range(tokens.shape[-1]):
            heard = (counts > book).to(self.device)[:, None, None]
            latents += heard * self.books[book][tokens[:, :, book]]
        is_speech = torch.arange(rows) < rows - of_music
        real = torch.cat([samples for _, samples in drawn])
        told = torch.from_numpy(rng.random(rows) < training.true_pitch)
        return Batch(*(part.to(self.device) for part in (latents.transpose(1, 2), real, is_speech, told)))

    def reader_step(self, step: int) -> dict[str, float]:
        """One step of the reader alone; returns the losses."""
        training, decoder = self.training, self.harmonic
        assert decoder is not None and self.reader_optimizer is not None
        batch = self.batch(step_rng(training.seed, step), training.reader_batch, training.reader_frames)
        rate = cosine_rate(step, training.reader_steps, training.reader_rate, training.warmup, training.rate_floor)
        for group in self.reader_optimizer.param_groups:
            group["lr"] = rate
        hertz, voiced = heard_pitch(batch.real, batch.speech, self.tracker)
        with torch.autocast(batch.real.device.type, torch.bfloat16, enabled=training.bf16):
            features = decoder.reader.features(batch.latents)
        bins, shares = decoder.reader.read(features[:, training.context :].float())
        missed = pitch_distance(bins, decoder.reader.log_hertz, hertz, voiced, training.pitch_spread)
        shared = share_distance(shares, voiced, training.share_full_hertz, training.share_none_hertz)
        loss = missed + shared
        self.reader_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        norm = nn.utils.clip_grad_norm_(decoder.reader.parameters(), training.clip_norm)
        self.reader_optimizer.step()
        self._average(self.codec.decoder)
        figures = {"pitch_distance": missed, "share_distance": shared, "loss": loss}
        return {name: float(value.detach()) for name, value in figures.items()} | {"grad": float(norm), "rate": rate}

    def _sung(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What the decoder makes of a batch, (B, 320 frames), and the distance of what its reader reads."""
        training, decoder = self.training, self.harmonic
        with torch.autocast(batch.real.device.type, torch.bfloat16, enabled=training.bf16):
            if decoder is None:
                made = self.codec.decoder(batch.latents)
                return made[:, 0, training.context * HOP_SAMPLES :].float(), None
            frames = decoder.frame.frames_from(decoder.frame.features(batch.latents))
            features = decoder.reader.features(batch.latents)
        judged = max(training.context - 1, 0)  # the frame before the crop is heard for its pitch and amplitudes
        bins, shares = decoder.reader.read(features[:, judged:].float())
        hertz, voiced = heard_pitch(batch.real, batch.speech, self.tracker)
        own = decoder.reader.pitch(bins.detach())
        ahead = bins.shape[1] - hertz.shape[1]
        given = torch.where(voiced & batch.told[:, None], hertz.double(), own[:, ahead:])
        sung = torch.where(batch.told[:, None, None], shares.detach(), shares)  # it learns by the pitch that was read
        made, _ = decoder.render(frames[:, judged:].float(), sung, torch.cat([own[:, :ahead], given], 1))
        bins, shares = bins[:, ahead:], shares[:, ahead:]
        missed = pitch_distance(bins, decoder.reader.log_hertz, hertz, voiced, training.pitch_spread)
        if not batch.speech.all():
            music, ends = ~batch.speech, (training.share_full_hertz, training.share_none_hertz)
            missed = missed + share_distance(shares[music], voiced[music], *ends)
        return made[:, 0, ahead * HOP_SAMPLES :], missed

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step of the reader, while it is taught alone, or of decoder and discriminator."""
        if self.reader_optimizer is not None and step < self.training.reader_steps:
            return self.reader_step(step)
        return self.decoder_step(step)

    def decoder_step(self, step: int) -> dict[str, float]:
        """One optimiser step of both sides; returns the losses."""
        training = self.training
        batch = self.batch(step_rng(training.seed, step), training.batch, training.frames)
        real = batch.real
        step -= training.reader_steps if self.reader_optimizer is not None else 0
        rate = cosine_rate(step, training.steps, training.rate, training.warmup, training.rate_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        made, misread = self._sung(batch)
        heard = made.detach().requires_grad_()
        log_mel, convergence = self.spectral(heard, real)
        envelope = self.envelope(heard, real)
        loss = log_mel + training.convergence_weight * convergence + training.envelope_weight * envelope
        figures = {"log_mel": log_mel, "convergence": convergence, "envelope": envelope}
        if training.waveform_weight > 0:
            level = real.square().mean(1, keepdim=True).sqrt() + training.waveform_quiet
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
        if misread is None:
            torch.autograd.backward([made], [gradient])
        else:
            figures["misread"] = misread
            torch.autograd.backward([made, training.pitch_weight * misread], [gradient, None])
        norm = nn.utils.clip_grad_norm_(self.codec.decoder.parameters(), training.clip_norm)
        self.optimizer.step()
        self._average(self.codec.decoder)
        figures["loss"] = loss
        return {name: float(value.detach()) for name, value in figures.items()} | {"grad": float(norm), "rate": rate}

    @torch.no_grad()
    def _average(self, decoder: nn.Module) -> None:
        keep = self.training.average
        for own, current in zip(self.average.parameters(), decoder.parameters(), strict=True):
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
                found = {"log_mel": float(self.measure(made[None], real[None])[0])}
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
    if training.decoder == "harmonic":
        codec = with_oscillators(codec)
    settings = {
        "config": codec.config.to_dict(),
        "tokeniser": tokeniser_sha256(codec),
        "training": json.loads(json.dumps(asdict(training))),
        "corpus": corpus.folder.name,
    }
    reading = training.reader_steps if codec.config.decoder == "harmonic" else 0
    run = Run(out, settings, {"training": before(DecoderTraining)})
    hours = {"speech": training.speech_hours, "music": training.music_hours}
    codes = build_codes(corpus, codec, hours, out / "codes", device)
    trainer = DecoderTrainer(codec, training, codes, device)
    state = run.load()
    if state is not None:
        trainer.load(state)
    yield from run.steps(
        trainer.step,
        reading + training.steps,
        trainer.train_step,
        trainer.state,
        validate=trainer.validate,
        validate_every=500,
    )
