"""Train a codec whose decoder makes tones: spectral or SEANet encoder, residual quantiser, source-filter decoder.

First the tokens alone: heads read mel, linear spectrum, semitones, pitch and voicing off the quantised latents, at
every depth, without a waveform; a step of this kind is cheap. From ``waveform_from`` on all is trained together, with
the distances of the decoded waveform. What was measured on the way stands in docs/log.md.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.decoders.frame import CausalConv
from model.codec.decoders.source_filter import SourceFilterDecoder, Sources
from model.codec.encoders.spectral import LOW_BINS, MELS, NOTES, Analysis, SpectralEncoder
from model.constants import HOP_SAMPLES, LATENT_DIM, SAMPLE_RATE_HZ, VOCABULARY
from model.training.configs import SourceFilterTraining, before
from model.training.corpus import Corpus
from model.training.evaluate import intelligibility
from model.training.loop import Run, State, cosine_rate, step_rng
from model.training.losses import EnvelopeLoss, SpectralLoss, ToneLoss
from model.training.pitch import MEASURE, PitchTracker, pitch, pitch_match
from model.training.pitch_targets import pitch_distance
from model.training.train_codec import crops, init_quantizer, lsuv
from model.training.tuning import in_tune, same_notes


class Heads(nn.Module):
    """What is read off the decoder's features while training, beside the pitch, and what predicts the next tokens."""

    def __init__(self, dim: int, ahead: int = SourceFilterTraining.predict_frames) -> None:
        """ahead: frames that are predicted"""
        super().__init__()
        self.ahead = ahead
        self.mel, self.low, self.notes = nn.Linear(dim, MELS), nn.Linear(dim, LOW_BINS), nn.Linear(dim, NOTES)
        self.voicing = nn.Linear(dim, 1)
        self.predictor = nn.Sequential(
            CausalConv(LATENT_DIM, 192, 5), nn.GELU(), CausalConv(192, 192, 5), nn.GELU(),
            CausalConv(192, ahead * LATENT_DIM, 1),
        )  # fmt: skip

    def surprise(self, coarse: Tensor) -> Tensor:
        """Vectors of the first codebook (B, 128, T) -> squared error of predicting the next, over their variance"""
        told = self.predictor(coarse).view(len(coarse), self.ahead, LATENT_DIM, -1)
        errors = [
            (told[:, ahead, :, : -ahead - 1] - coarse[:, :, ahead + 1 :]).square().mean() for ahead in range(self.ahead)
        ]
        variance = coarse.detach().var((0, 2)).mean() + 1e-6
        return torch.stack(errors).mean() / variance


def quantize_rows(
    codec: Codec,
    latents: Tensor,
    depths: Tensor,
    training: SourceFilterTraining | None,
    rng: np.random.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (B, 128, T) by the first ``depths`` (B,) codebooks of each row.

    Returns the sum (B, 128, T), the same of the first codebook alone, both with the gradient passed straight through,
    the commitment, and the codes (B, K, T). With ``training`` the codebooks move towards what they code.
    """
    rows, _, frames = latents.shape
    flat = latents.transpose(1, 2).reshape(-1, LATENT_DIM)  # (N, 128)
    depth = depths.repeat_interleave(frames)
    residual, total = flat, torch.zeros_like(flat)
    commitment, codes, first = flat.new_zeros(()), [], flat
    mean_use = len(flat) / VOCABULARY
    redrawn: Tensor | None = None
    if rng is not None and training is not None and training.redrawn > 0:
        redrawn = torch.from_numpy(rng.random(len(flat)) < training.redrawn).to(flat.device) & (depth == depth.max())
    for index, layer in enumerate(codec.quantizer.vq.layers):
        book = layer._codebook
        with torch.no_grad():
            chosen = torch.cdist(residual.detach(), book.embed).argmin(1)
            vector = book.embed[chosen]
        on = (depth > index).float()[:, None]
        commitment = commitment + ((residual - vector).square().mean(1) * on[:, 0]).mean()
        heard = vector
        if redrawn is not None and index >= 2 and rng is not None:
            other = torch.from_numpy(rng.integers(0, VOCABULARY, len(flat))).to(flat.device)
            heard = torch.where(redrawn[:, None], book.embed[other], vector)
        total = total + heard * on
        if index == 0:
            first = flat + (vector - flat).detach()
        if training is not None and training.decay < 1:
            with torch.no_grad():
                keep = training.decay
                counts = torch.bincount(chosen, minlength=VOCABULARY).float()
                book.cluster_size.mul_(keep).add_((1 - keep) * counts)
                book.embed_avg.mul_(keep).index_add_(0, chosen, (1 - keep) * residual.detach())
                book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(training.least_use)[:, None])
                dead = book.cluster_size < training.dead_share * mean_use
                if bool(dead.any()) and rng is not None:
                    picks = torch.from_numpy(rng.integers(0, len(flat), int(dead.sum()))).to(flat.device)
                    book.embed[dead] = residual.detach()[picks]
                    book.cluster_size[dead] = mean_use
                    book.embed_avg[dead] = residual.detach()[picks] * mean_use
        residual = residual - vector
        codes.append(chosen)

    def back(x: Tensor) -> Tensor:
        return x.view(rows, frames, LATENT_DIM).transpose(1, 2)

    straight = flat + (total - flat).detach()
    return back(straight), back(first), commitment, torch.stack(codes, 1).view(rows, frames, -1).transpose(1, 2)


def pitch_amid(samples: Tensor, tracker: PitchTracker = MEASURE) -> tuple[Tensor, Tensor]:
    """Pitch and voicing in the middle of each frame, (B, N) -> (B, N // 320) each.

    A frame's pulses keep the pitch that they are told. Told the pitch at the frame's beginning they lag behind a glide:
    0.72 of the voiced frames then sound within 50 cents, and 0.81 when told that of the middle.
    """
    return pitch(F.pad(samples, (0, HOP_SAMPLES // 2))[:, HOP_SAMPLES // 2 :], tracker)


class SourceFilterTrainer:
    """Codec, heads, optimiser and one step; the state is everything that a resumed run needs."""

    def __init__(
        self, config: CodecConfig, training: SourceFilterTraining, corpus: Corpus, device: str = "cpu"
    ) -> None:
        torch.manual_seed(training.seed)
        self.training, self.corpus, self.device = training, corpus, device
        self.codec = Codec(config).to(device)
        assert isinstance(self.codec.decoder, SourceFilterDecoder), "a decoder that makes tones"
        self.decoder = self.codec.decoder
        self.heads = Heads(config.frame_dim, training.predict_frames).to(device)
        self.encoder_analysis = (
            self.codec.encoder.analysis if isinstance(self.codec.encoder, SpectralEncoder) else Analysis().to(device)
        )
        self.loss, self.measure = ToneLoss(training).to(device), SpectralLoss()
        self.envelope = EnvelopeLoss(training.envelope_heard, training.envelope_stride).to(device)
        self.tracker = PitchTracker.of(training)
        self.step = 0
        self.speech, self.music = corpus.split("train", "speech"), corpus.split("train", "music")
        self.parameters = [*self.codec.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.rate, betas=training.betas, weight_decay=training.weight_decay
        )
        self.averaged = {name: value.detach().clone() for name, value in self.codec.named_parameters()}

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crops (B, 320 frames), and which rows are speech (B,)"""
        training = self.training
        of_music = int(rng.binomial(training.batch, training.music_share)) if self.speech and self.music else 0
        if not self.speech:
            of_music = training.batch
        parts = [(self.speech, training.batch - of_music), (self.music, of_music)]
        rows = torch.cat(
            [crops(self.corpus, clips, training.frames, n, rng, training.crop_gain_db) for clips, n in parts if n]
        )
        return rows.to(self.device), torch.arange(training.batch, device=self.device) < training.batch - of_music

    def initialise(self) -> None:
        """For a run that starts from nothing: LSUV where the encoder is SEANet."""
        if not isinstance(self.codec.encoder, SpectralEncoder):
            samples, _ = self.batch(step_rng(self.training.seed, 2**31))
            lsuv(self.codec.encoder, samples[:, None])

    @torch.no_grad()
    def fit_quantizer(self, rng: np.random.Generator) -> None:
        """All codebooks anew, from k-means on the latents of ``kmeans_batches``."""
        latents = [
            self.codec.encoder(self.batch(rng)[0][:, None]).transpose(1, 2).flatten(0, 1)
            for _ in range(self.training.kmeans_batches)
        ]
        expected = self.training.batch * self.training.frames / VOCABULARY
        init_quantizer(self.codec, torch.cat(latents), expected, self.training.kmeans_rounds)

    def state(self) -> State:
        return {
            "codec": self.codec.state_dict(), "heads": self.heads.state_dict(), "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load(self, state: State, optimizer: bool = True) -> None:
        """Go on with a run; without its ``optimizer``, begin another one with its weights."""
        self.codec.load_state_dict(state["codec"])
        if not optimizer and self.training.freeze_tokens_from == 0:
            # tokens that stay are those of the encoder that was exported, and that is the averaged one
            self.codec.load_state_dict(state["averaged"], strict=False)
        self.heads.load_state_dict(state["heads"])
        self.averaged = {name: value.clone().to(self.device) for name, value in state["averaged"].items()}
        if optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])

    def _began(self, hertz: Tensor, rng: np.random.Generator) -> Sources:
        """A state at a random place, so that no phase is learned."""
        start = self.decoder.start(hertz)
        rows = len(hertz)
        return start._replace(
            frames=torch.from_numpy(rng.integers(0, 2**40, rows)).to(self.device),
            phase=torch.from_numpy(rng.random(rows)).to(self.device),
        )

    def _idle(self, read: Tensor, speech: Tensor) -> Tensor:
        """Level of the pulses in rows of music and of the sines in rows of speech, nats above the quietest."""
        levels, _, amplitudes = self.decoder.controls(read)
        pulses = F.relu(torch.log(levels[..., 0]) + self.training.idle_nats).mean(1)  # (B,)
        sines = F.relu(torch.log(amplitudes) + self.training.idle_nats).mean((1, 2))
        return torch.where(speech, sines, pulses).mean()

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        training, rng = self.training, step_rng(self.training.seed, step)
        rate = cosine_rate(step, training.steps, training.rate, training.warmup, training.rate_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if step in training.kmeans_at:
            self.fit_quantizer(step_rng(training.seed, 2**30 + step))
        samples, speech = self.batch(rng)
        with torch.no_grad():
            hertz, voiced = pitch_amid(samples, self.tracker)
            voiced = (voiced & speech[:, None]).float()
            features = self.encoder_analysis(samples)
        frozen = 0 <= training.freeze_tokens_from <= step
        low = torch.autocast(samples.device.type, torch.bfloat16, enabled=training.bf16)
        with torch.set_grad_enabled(not frozen), low:
            encoder = self.codec.encoder
            own = isinstance(encoder, SpectralEncoder)  # whose features are made already
            latents = encoder.latents(features) if own else encoder(samples[:, None])  # type: ignore[operator]
        latents = latents.float()
        counts, weights = zip(*training.depths, strict=True)
        depths = torch.from_numpy(rng.choice(counts, size=training.batch, p=weights)).to(self.device)
        commitment = surprise = samples.new_zeros(())
        quantized = latents
        if step >= min(training.kmeans_at, default=0):
            quantized, coarse, commitment, _ = quantize_rows(
                self.codec, latents, depths, training if not frozen else replace(training, decay=1.0), rng
            )
            bypass = torch.from_numpy(rng.random(training.batch) < training.unquantized).to(self.device)
            quantized = torch.where(bypass[:, None, None], latents, quantized)
            if training.predict_weight and not frozen:
                surprise = self.heads.surprise(coarse)
        with low:
            read = self.decoder.trunk.features(quantized)
        read = read.float()
        losses = {
            "mel": (self.heads.mel(read) - features["mel"]).abs().mean(),
            "low": (self.heads.low(read) - features["low"]).abs().mean(),
            "notes": (self.heads.notes(read) - features["notes"]).abs().mean(),
            "pitch": pitch_distance(
                self.decoder.bins(read), self.decoder.log_hertz.float(), hertz, voiced, training.pitch_spread
            ),
            "voicing": F.binary_cross_entropy_with_logits(self.heads.voicing(read)[..., 0], voiced),
            "commitment": commitment,
            "surprise": surprise,
        }
        weights_of = {
            "mel": training.mel_weight, "low": training.low_weight, "notes": training.notes_weight,
            "pitch": training.pitch_weight, "voicing": training.voicing_weight, "commitment": training.commitment,
            "surprise": training.predict_weight, "idle": training.idle_weight, "waveform": training.waveform_weight,
            "envelope": training.envelope_weight,
        }  # fmt: skip
        if step >= training.waveform_from:
            # what a kind has no use for is let through in no row of it, and told to be quiet: the other sources take
            # over, and at serving time it is the sound that decides
            shares = torch.stack([speech.float(), 1 - speech.float()], 1)
            made = self.decoder.render(read, self._began(self.decoder.pitch(read), rng), shares)[0][:, 0]
            losses["idle"] = self._idle(read, speech)
            cut = training.warm_frames * HOP_SAMPLES
            losses["waveform"] = self.loss(made[:, cut:], samples[:, cut:])
            if 0 <= training.envelope_from <= step:
                losses["envelope"] = self.envelope(made[:, cut:], samples[:, cut:])
        total = torch.stack([weights_of[name] * value for name, value in losses.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], training.clip_norm)
        self.optimizer.step()
        keep = (
            min(training.average, (step + 1) / (step + training.average_delay))
            if step >= training.waveform_from
            else 0.0
        )
        with torch.no_grad():
            for name, value in self.codec.named_parameters():
                self.averaged[name].lerp_(value, 1 - keep)
        self.step = step + 1
        return {"loss": float(total.detach())} | {name: float(value.detach()) for name, value in losses.items()}

    def averaged_codec(self) -> Codec:
        """The codec with the running average of its weights; codebooks are averages already."""
        codec = Codec(self.codec.config)
        codec.load_state_dict(self.codec.state_dict() | self.averaged)
        return codec.eval()  # on the CPU

    def clips(self, count: int, seconds: float = 4.0) -> list[tuple[str, Tensor]]:
        """Fixed validation clips of each kind, spread over the held-out groups: (kind, (N,))"""
        out: list[tuple[str, Tensor]] = []
        for kind in ("speech", "music"):
            groups: dict[str, list[Any]] = {}
            for clip in self.corpus.split("valid", kind):
                if clip.length > 2 * SAMPLE_RATE_HZ:
                    groups.setdefault(clip.group, []).append(clip)
            longest = max((len(own) for own in groups.values()), default=0)
            order = [own[i] for i in range(longest) for own in groups.values() if i < len(own)][:count]
            if kind == "music":  # few pieces, long: several places of each
                order = [clip for clip in order for _ in range(max(1, count // max(1, len(order))))]
            for place, clip in enumerate(order):
                length = round(min(clip.length, seconds * SAMPLE_RATE_HZ)) // HOP_SAMPLES * HOP_SAMPLES
                start = 0 if kind == "speech" else (place * 7 + 5) * SAMPLE_RATE_HZ % max(clip.length - length, 1)
                out.append((kind, torch.from_numpy(self.corpus.read(clip, start, length))))
        return out

    @torch.no_grad()
    def validate(self, count: int = 16, depths: tuple[int, ...] = (1, 8), perceptual: bool = True) -> dict[str, float]:
        """Figures on validation speakers and pieces, by the averaged weights."""
        codec, heads = self.averaged_codec(), deepcopy(self.heads).cpu()
        decoder = codec.decoder
        assert isinstance(decoder, SourceFilterDecoder)
        analysis = Analysis()
        sums: dict[str, list[float]] = {}
        tokens: dict[str, list[Tensor]] = {"speech": [], "music": []}
        for kind, samples in self.clips(count):
            codes = codec.encode(samples[None])
            tokens[kind].append(codes[0])
            targets = analysis(samples[None])
            hertz, voiced = pitch_amid(samples[None])
            for depth in depths:
                read = decoder.trunk.features(codec.dequantize(codes[:, :depth]))
                figures = {"mel": float((heads.mel(read) - targets["mel"]).abs().mean()) * 2.0,
                           "notes": float((heads.notes(read) - targets["notes"]).abs().mean()) * 5.0}  # fmt: skip
                if kind == "speech" and bool(voiced.any()):
                    near = (decoder.pitch(read) / hertz).log2().abs() < 50 / 1200
                    figures["read"] = float(near[voiced].float().mean())
                if self.step > self.training.waveform_from:
                    made = decoder.render(read)[0][0, 0]
                    figures["logmel"] = float(self.measure(made[None], samples[None])[0])
                    if kind == "speech":
                        if perceptual:
                            figures |= intelligibility(made, samples)
                        match = pitch_match(made, samples)
                        figures |= {} if match is None else {"pitch": match}
                    else:
                        tuned, notes = in_tune(made), same_notes(made, samples)
                        figures |= {} if tuned is None else {"tuned": tuned}
                        figures |= {} if notes is None else {"cosine": notes}
                for name, value in figures.items():
                    sums.setdefault(f"{kind}_{name}_{depth}", []).append(value)
        out = {name: round(sum(values) / len(values), 4) for name, values in sums.items()}
        for kind, parts in tokens.items():
            if parts:
                joined = torch.cat(parts, 1)
                for book in (0, 1, 7):
                    share = torch.bincount(joined[book], minlength=VOCABULARY).float()
                    share = share[share > 0] / share.sum()
                    out[f"{kind}_entropy_{book + 1}"] = round(float(-(share * share.log()).sum()), 3)
        return out


def train_source_filter(
    config: CodecConfig,
    training: SourceFilterTraining,
    corpus: Corpus,
    folder: Path,
    device: str = "cpu",
    validate_every: int = 500,
) -> Iterator[int]:
    """Start or resume a run; yields each step. Raises ValueError when the folder holds a run with other settings."""
    run = Run(
        folder,
        {"config": config.to_dict(), "training": _plain(asdict(training))},
        {"training": before(SourceFilterTraining)},
    )
    trainer = SourceFilterTrainer(config, training, corpus, device)
    state = run.load()
    if state is not None:
        trainer.load(state)
    elif training.start_from:
        trainer.load(torch.load(training.start_from, map_location=device, weights_only=True), optimizer=False)
    else:
        trainer.initialise()
    yield from run.steps(
        trainer.step, training.steps, trainer.train_step, trainer.state, validate=trainer.validate,
        validate_every=validate_every,
    )  # fmt: skip


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return {name: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
            for name, value in values.items()}  # fmt: skip
