"""Many continuations at once, one a prompt, with mel (the closed loop) or without."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.common import Subject
from model.codec.streaming import StreamingDecoder, StreamingEncoder
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, MEL_LEFT_SAMPLES
from model.inference.backend import backend_for
from model.inference.closed_loop import LoopState, closed_loop_step
from model.inference.prefill import prefill
from model.inference.rng import uniforms
from model.inference.sampling import RowOptions, SamplingOptions
from model.lm.hybrid_lm import LMCache, shift


@dataclass(frozen=True)
class Made:
    """What was made, a row a prompt: tokens and log-probabilities (B, F), samples (B, 320 F)."""

    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    samples: npt.NDArray[np.float32]


def read(subject: Subject, prompts: Tensor) -> tuple[LMCache, LoopState]:
    """Cache and state after prompts (B, N) of one length, whole frames, read without their mel."""
    bundle, rows = subject.bundle, len(prompts)
    decoder, encoder = StreamingDecoder(bundle.codec), StreamingEncoder(bundle.codec)
    codes, _ = encoder.step(prompts, encoder.start(rows))
    heard, state = decoder.step(codes[:, : subject.codebooks], decoder.start(rows))
    mel_frames = bundle.mel(prompts)
    cache = bundle.lm.new_cache(rows)
    bundle.lm(shift(codes[:, 0], None)[0], cache=cache)
    tail = heard[:, -MEL_LEFT_SAMPLES:]
    return cache, LoopState(codes[:, : subject.codebooks, -1], mel_frames[:, -1:], state, tail)


def _served(subject: Subject, prompts: Tensor, frames: int, options: SamplingOptions, words: str) -> Made:
    """In the closed loop, by the slots that the server uses."""
    bundle, rows = subject.bundle, len(prompts)
    slots = backend_for(bundle, rows, subject.codebooks)
    for row, prompt in enumerate(prompts):
        slots.join(row, prefill(bundle, prompt, codebooks=subject.codebooks), options, choice=row)
    made = [slots.step(range(rows)) for _ in track(range(frames), description=words)]
    return Made(
        np.stack([frame.codes[:, 0] for frame in made], 1),
        np.stack([frame.logprobs for frame in made], 1),
        np.concatenate([frame.samples for frame in made], 1),
    )


@torch.inference_mode()
def _masked(subject: Subject, prompts: Tensor, frames: int, options: SamplingOptions, words: str) -> Made:
    """Without mel, which the server does not offer: the steps of `model.inference.closed_loop`, with a row a prompt."""
    bundle, rows = subject.bundle, len(prompts)
    numbers = np.stack([uniforms(options.seed, row, 0, frames, subject.codebooks) for row in range(rows)])
    uniform = torch.from_numpy(numbers)  # (B, F, K)
    cache, state = read(subject, prompts)
    decoder, drawing = StreamingDecoder(bundle.codec), RowOptions([options] * rows)
    made = []
    for index in track(range(frames), description=words):
        frame, state = closed_loop_step(bundle, decoder, cache, state, drawing, uniform[:, index], masked=True)
        made.append(frame)
    return Made(
        torch.stack([frame.codes[:, 0] for frame in made], 1).numpy(),
        torch.stack([frame.logprobs for frame in made], 1).numpy(),
        torch.cat([frame.samples for frame in made], 1).numpy(),
    )


def continue_all(subject: Subject, prompts: Tensor, frames: int, options: SamplingOptions, words: str = "") -> Made:
    """Continue prompts (B, 320 n), each with random numbers of its own: the choice number is the row."""
    assert prompts.shape[1] % HOP_SAMPLES == 0, f"{prompts.shape[1]} samples are not whole frames"
    loop = _masked if subject.masked else _served
    return loop(subject, prompts, frames, options, words or f"{len(prompts)} x {frames / FRAME_RATE_HZ:g} s")


@torch.inference_mode()
def coded(subject: Subject, samples: Tensor) -> Tensor:
    """Samples (B, N) as the codec gives them back, (B, N): the best that a continuation of the subject's can sound."""
    codec = subject.bundle.codec
    return torch.cat([codec.decode(codec.encode(row[None])[:, : subject.codebooks]) for row in samples])
