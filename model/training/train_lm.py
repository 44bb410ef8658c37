"""Train the language model on the tokens of a frozen codec.

A training sequence is a window of one long stream: the documents in a random order, each led by BOS. Half of the
sequences take their mel from the real audio and half from what the codec decoded, with noise and masked spans, so that
at serving time real, decoded and masked mel frames are all in distribution.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import Bundle, load_bundle, tokeniser_sha256
from model.constants import MAX_CODEBOOKS, MEL_BANDS, VOCABULARY
from model.lm.config import DecoderConfig
from model.lm.depth_decoder import NO_CODE, frames_before
from model.lm.hybrid_lm import HybridLM
from model.training.configs import LMTraining as LMTraining
from model.training.configs import TokenSettings, before
from model.training.loop import Run, State, cosine_rate, step_rng
from model.training.pauses import deep_silence
from model.training.token_set import Document, TokenSet

BOS = VOCABULARY
UNJUDGED = -1  # a target that the loss leaves out
EARLIER = {"training": before(LMTraining), "tokens": {"settings": before(TokenSettings)}}  # for `Run`


class Stream:
    """The documents of a split in a seeded random order, as one sequence of positions."""

    def __init__(self, documents: list[Document], seed: int, epoch: int) -> None:
        order = np.random.default_rng([seed, epoch]).permutation(len(documents))
        self.starts = np.array([documents[i].start for i in order])
        pauses = [np.asarray(d.pauses).reshape(-1, 2) + d.start for d in (documents[i] for i in order)]
        self.pauses = np.sort(np.concatenate([np.zeros((0, 2), np.int64), *pauses]), axis=0)  # disjoint
        self.ends = np.cumsum([documents[i].frames for i in order])

    def frames(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions ``first`` to ``first + count - 1``: the frame that each predicts, and whether a document starts."""
        positions = np.arange(first, first + count)
        which = np.searchsorted(self.ends, positions, side="right")
        offsets = positions - np.concatenate([[0], self.ends])[which]
        return self.starts[which] + offsets, offsets == 0

    def in_pause(self, frames: np.ndarray) -> np.ndarray:
        """Which of these frames lie in a pause that was put in."""
        if not len(self.pauses):
            return np.zeros(len(frames), dtype=bool)
        before = np.searchsorted(self.pauses[:, 0], frames, side="right") - 1
        inside: np.ndarray = (before >= 0) & (frames < self.pauses[np.maximum(before, 0), 1])
        return inside


@dataclass(frozen=True)
class Batch:
    """``inputs`` (B, T) int64 with BOS, ``mel`` (B, T, 64), ``masked`` (B, T) bool, targets ``codes`` (B, T, 8).

    ``before`` (B, T, 8): the codes of the frame before each target, NO_CODE where a document starts.
    ``judged`` (B, T) bool: the targets that count, all but those in pauses that were put in, or deep in a silence.
    """

    inputs: Tensor
    mel: Tensor
    masked: Tensor
    codes: Tensor
    before: Tensor
    judged: Tensor

    def to(self, device: str) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


class Batches:
    """Training batches by step number, the same for every run with the same settings."""

    def __init__(self, tokens: TokenSet, training: LMTraining, deviation: Tensor) -> None:
        self.tokens, self.training = tokens, training
        self.deviation = deviation.numpy()
        documents = {kind: tokens.of("train", kind) for kind in ("speech", "music")}
        self.documents = {kind: found for kind, found in documents.items() if found}
        if not self.documents:
            raise ValueError(f"no training documents in {tokens.folder}")
        self._deep = self._deep_silence() if training.judged_silence > 0 else None
        self._streams: dict[tuple[str, int], Stream] = {}

    def _deep_silence(self) -> np.ndarray:
        """Which frames of the set, (F,) bool, lie so deep in a silence that their targets do not count."""
        deep = np.zeros(len(self.tokens.codes), dtype=bool)
        for document in self.tokens.of("train"):
            rows = slice(document.start, document.start + document.frames)
            mel = self.tokens.mel_real[rows].astype(np.float32)
            deep[rows] = deep_silence(mel, self.training.judged_silence, self.training.quiet_share)
        return deep

    def _stream(self, kind: str, epoch: int) -> Stream:
        if (kind, epoch) not in self._streams:
            self._streams = {key: stream for key, stream in self._streams.items() if key[0] != kind}
            self._streams[kind, epoch] = Stream(self.documents[kind], self.training.seed, epoch)
        return self._streams[kind, epoch]

    def _row(self, kind: str, number: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ``number``-th window of a kind, were all windows ``length`` long: frames, starts, what is judged."""
        total = sum(document.frames for document in self.documents[kind])
        windows = max(total // length, 1)
        epoch, window = divmod(number, windows)
        shift = int(np.random.default_rng([self.training.seed, epoch, 1]).integers(0, length))
        first = (window * length + shift) % max(total - length, 1)
        stream = self._stream(kind, epoch)
        frames, starts = stream.frames(first, min(length, total))
        left_out = stream.in_pause(frames) if self._deep is None else stream.in_pause(frames) | self._deep[frames]
        return frames, starts, ~left_out

    def __call__(self, step: int) -> Batch:
        """Batch of a step. Reads only what the step needs."""
        training = self.training
        rng = step_rng(training.seed, step)
        long = step >= training.long_from * training.steps
        size, length = (max(training.batch // 2, 1), 2 * training.length) if long else (training.batch, training.length)
        # no longer than the shortest kind lasts: all rows of a batch have one length
        length = min(length, *(sum(document.frames for document in found) for found in self.documents.values()))
        share = training.music_share if len(self.documents) == 2 else float("music" in self.documents)
        before, after = (math.floor(turn * size * share + 1e-9) for turn in (step, step + 1))  # rows of music so far
        numbers = [("music", number) for number in range(before, after)]
        numbers += [("speech", number) for number in range(step * size - before, (step + 1) * size - after)]
        rows = [self._batch_row(*self._row(kind, number, length), rng) for kind, number in numbers]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)))

    def _batch_row(
        self, frames: np.ndarray, starts: np.ndarray, judged: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        training, tokens = self.training, self.tokens
        previous = np.maximum(frames - 1, 0)
        before = np.where(starts[:, None], NO_CODE, tokens.codes[previous].astype(np.int64))
        inputs = np.where(starts, BOS, before[:, 0])
        decoded = rng.random() < training.decoded_share
        mel = (tokens.mel_decoded if decoded else tokens.mel_real)[previous].astype(np.float32)
        noise = rng.uniform(0.0, training.noise) if decoded else 0.0
        mel += rng.standard_normal(mel.shape, dtype=np.float32) * np.float32(noise) * self.deviation
        masked = starts.copy()
        chance = rng.random()
        if chance < training.masked_share:
            masked[:] = True
        elif chance < training.masked_share + training.span_share:
            for _ in range(int(rng.integers(*training.spans, endpoint=True))):
                first = int(rng.integers(0, len(frames)))
                masked[first : first + int(rng.integers(*training.span_frames, endpoint=True))] = True
        return inputs, mel, masked, tokens.codes[frames].astype(np.int64), before, judged


def initialise(model: HybridLM) -> None:
    """Weights to begin a training with: embeddings of unit deviation, products that keep it, residual branches small.

    With GPT-2's 0.02 everywhere, Adam needs hundreds of steps to bring embeddings of width 256 to a size that tells one
    token from another: after 160 steps of 512 tokens gpt-s stood at 6.0 nats, with these at 4.3 (docs/log.md).
    """
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or name.startswith("fine."):
            continue
        layers = len(model.stack.blocks) if name.startswith("stack.") else model.config.mel_layers
        if name.startswith("embedding."):
            nn.init.normal_(weight, std=1.0)
        elif name.startswith("head."):
            nn.init.normal_(weight, std=0.02)
        elif name.endswith(("attention.out.weight", "contract.weight")):
            nn.init.normal_(weight, std=(2 * layers * weight.shape[1]) ** -0.5)
        else:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def check_start(bundle: Bundle, codec_sha256: str, config: DecoderConfig) -> None:
    """Raises ValueError where a run cannot begin with a bundle: its codec makes other tokens, its shape is another."""
    if tokeniser_sha256(bundle.codec) != codec_sha256:
        raise ValueError(f"{bundle.folder} has learned the tokens of another codec; leave --codec out to use its own")
    if bundle.lm.config != config:
        raise ValueError(f"{bundle.folder} is of another shape ({bundle.preset}); leave --preset out")


class LMTrainer:
    """Model, optimiser and one step."""

    def __init__(
        self,
        config: DecoderConfig,
        training: LMTraining,
        tokens: TokenSet,
        device: str = "cpu",
        codebooks: Tensor | None = None,
    ) -> None:
        """``codebooks`` (K, 1024, 128): the codec's, which the previous frame's embeddings begin with."""
        torch.manual_seed(training.seed)
        self.training, self.tokens, self.device = training, tokens, device
        self.model = HybridLM(config, round_cache=False)
        initialise(self.model)
        if codebooks is not None:
            self.model.fine.begin_with(codebooks)
        mean, deviation = tokens.mel_statistics()
        self.model.mel_mean.copy_(mean)
        self.model.mel_std.copy_(deviation)
        self.model.to(device)
        self.batches = Batches(tokens, training, deviation)
        self.unigram = tokens.unigram().to(device)
        decayed = [p for p in self.model.parameters() if p.dim() >= 2]
        plain = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=training.rate, betas=training.betas)
        self.step = 0

    def state(self) -> State:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])

    def begin_with(self, checkpoint: Path) -> None:
        """Take the weights (and the mel statistics, which belong to them) of another run, or of a bundle's folder.

        An optimiser stays behind. A run without `fine_recall` leaves that part as it is here. Raises ValueError when
        the weights learned another codec's tokens, or are of another shape, and BundleError, which is one, for a
        folder that is no whole bundle.
        """
        if checkpoint.is_dir():
            self._begin_with_bundle(load_bundle(checkpoint))
            return
        known = checkpoint.parent / "settings.json"
        learned = json.loads(known.read_text())["settings"]["tokens"]["codec_sha256"] if known.exists() else None
        if learned is not None and learned != self.tokens.made_from["codec_sha256"]:
            raise ValueError(f"{checkpoint} has learned the tokens of another codec")
        weights = torch.load(checkpoint, map_location=self.device, weights_only=True)["model"]
        if (embeddings := self.model.fine.previous_frame) is not None:
            weights.setdefault("fine.recall", embeddings)
        self.model.load_state_dict(weights)

    def _begin_with_bundle(self, bundle: Bundle) -> None:
        """Its language model, which `load_bundle` has made float32. Raises ValueError as above."""
        check_start(bundle, self.tokens.made_from["codec_sha256"], self.model.config)
        self.model.load_state_dict(bundle.lm.state_dict())

    def _losses(self, batch: Batch, positions: Tensor, known: int = MAX_CODEBOOKS) -> tuple[Tensor, Tensor]:
        """Coarse NLL over all positions, and the mean NLL of the fine codes at ``positions`` (P,) of the flat batch.

        The depth decoder is told the first ``known`` codes of the frame before.
        """
        uses_mel = self.model.config.mel
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.training.bf16):
            hidden = self.model(batch.inputs, batch.mel if uses_mel else None, batch.masked if uses_mel else None)
            logits = self.model.logits(hidden)
        targets = torch.where(batch.judged, batch.codes[..., 0], UNJUDGED).flatten()
        coarse = F.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=UNJUDGED)
        if self.training.fine_weight == 0 or len(positions) == 0:
            return coarse, coarse.new_zeros(())
        codes = batch.codes.flatten(0, 1)[positions]  # (P, 8)
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.training.bf16):
            before = batch.before.flatten(0, 1)[positions, :known]
            fine_logits = self.model.fine(hidden.flatten(0, 1)[positions], codes, before)  # (P, 7, 1024)
        return coarse, F.cross_entropy(fine_logits.float().flatten(0, 1), codes[:, 1:].flatten())

    def train_step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns the losses in nats."""
        training = self.training
        rng = step_rng(training.seed + 1, step)
        batch = self.batches(step)
        flat = batch.inputs.numel()
        positions = torch.from_numpy(np.sort(rng.choice(flat, round(flat * training.fine_positions), replace=False)))
        batch, positions = batch.to(self.device), positions.to(self.device)
        rate = cosine_rate(step, training.steps, training.rate, training.warmup, training.rate_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.model.set_round_cache(False)
        counts, shares = zip(*training.recalled, strict=True)
        coarse, fine = self._losses(batch, positions, int(rng.choice(counts, p=shares)))
        self.optimizer.zero_grad(set_to_none=True)
        (coarse + training.fine_weight * fine).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.optimizer.step()
        return {"loss": float(coarse.detach()), "fine": float(fine.detach()), "rate": rate}

    @torch.no_grad()
    def validate(self, limit_frames: int = 40_000) -> dict[str, float]:
        """Coarse NLL and fine NLL by kind on the validation split, each document alone, real mel; and the unigram's."""
        self.model.eval()
        self.model.set_round_cache(True)  # as it will be served
        figures: dict[str, float] = {}
        for kind in ("speech", "music"):
            sums = np.zeros(4)
            for document in self.tokens.of("valid", kind):
                if sums[3] >= limit_frames:
                    break
                batch = document_batch(self.tokens, document).to(self.device)
                every = torch.arange(0, document.frames, 4, device=self.device)
                coarse, fine = self._losses(batch, every)
                unigram = -self.unigram[batch.codes[0, :, 0]].mean()
                sums += np.array([float(coarse), float(fine), float(unigram), 1.0]) * document.frames
            if sums[3]:
                nll, fine_nll, base = (float(x) for x in sums[:3] / sums[3])
                figures |= {f"valid_{kind}": nll, f"valid_{kind}_fine": fine_nll, f"valid_{kind}_unigram": base}
        if any(not math.isfinite(value) for value in figures.values()):
            raise FloatingPointError(f"validation is not finite: {figures}")
        return figures


def document_batch(tokens: TokenSet, document: Document, decoded: bool = False) -> Batch:
    """A whole document as a batch of one row, led by BOS."""
    rows = slice(document.start, document.start + document.frames)
    codes = torch.from_numpy(tokens.codes[rows].astype(np.int64))[None]
    mel = torch.zeros(1, document.frames, MEL_BANDS)
    source = tokens.mel_decoded if decoded else tokens.mel_real
    mel[0, 1:] = torch.from_numpy(source[rows][:-1].astype(np.float32))
    inputs = torch.cat([torch.full((1, 1), BOS), codes[:, :-1, 0]], dim=1)
    masked = torch.zeros(1, document.frames, dtype=torch.bool)
    masked[:, 0] = True
    return Batch(inputs, mel, masked, codes, frames_before(codes), torch.ones_like(masked))


def train_lm(
    config: DecoderConfig,
    training: LMTraining,
    tokens: TokenSet,
    out: Path,
    device: str = "cpu",
    validate_every: int = 250,
    validate_frames: int = 40_000,
    codebooks: Tensor | None = None,
) -> Iterator[int]:
    """Train, or go on with, the language model of the run in ``out``; yields the number of steps done.

    Every ``validate_every`` steps it is measured on ``validate_frames`` frames of each kind.
    """
    settings = {"config": asdict(config), "training": asdict(training), "tokens": tokens.made_from}
    run = Run(out, json.loads(json.dumps(settings)), EARLIER)
    trainer = LMTrainer(config, training, tokens, device, codebooks)
    state = run.load()
    if state is not None:
        trainer.load(state)
    elif training.start_from:
        trainer.begin_with(Path(training.start_from))
    yield from run.steps(
        trainer.step,
        training.steps,
        trainer.train_step,
        trainer.state,
        validate=partial(trainer.validate, validate_frames),
        validate_every=validate_every,
    )
