"""A decoder that keeps count of phase: oscillators at the pitch that the codes carry, beside the `frame` decoder.

The `frame` decoder is the same function at every frame, so whatever it makes of a steady voice has a period of one
frame: 75 Hz or a multiple of it. Here a second, smaller network of the same kind (`PitchEstimator`) reads pitch and, in
bands, how much of the sound is one voice's harmonics. That share of the frame's spectrum is taken out of the frame and
given to sines at multiples of the pitch, whose phase runs on from frame to frame, as in harmonic-plus-noise models
(Stylianou, 2001) and DDSP (arXiv 2001.04643). With a share of zero, which is what piano is to get, the frame stays as
it is.

Each sine takes the power around its frequency in a triangle as wide as the pitch: the triangles sum to one, so power is
kept. Amplitudes and pitch move within 80 samples of a frame; over the whole frame they would lag behind the sound.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.decoders.frame import FrameDecoder, FrameTrunk, TrunkState
from model.codec.interface import Decoder
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ

PITCH_MIN_HZ, PITCH_MAX_HZ, PITCH_BINS = 70.0, 490.0, 128  # bins of 26 cents
NEAR_BINS = 4  # on either side of the likeliest bin that count towards the pitch
LINE_HZ = SAMPLE_RATE_HZ // HOP_SAMPLES  # 75 Hz: distance of the lines of a frame's spectrum
LINES = 80  # that sines may take over: 75 to 6000 Hz
HARMONICS = 84  # of a pitch of 72 Hz, up to 6 kHz
BANDS = 12  # of the share, centres equally spaced in mel from 75 to 6000 Hz
SHARE_MAX = 0.999  # the root of what is left has a gradient
SHARE_FROM = 0.2  # probability of a voice below which a band's share is zero, not merely small: piano stays as it is
RAMP = 80  # samples in which amplitudes and pitch arrive
POWER_FLOOR = 1e-10  # the root of an amplitude's power has a gradient


class HarmonicState(NamedTuple):
    """What the oscillators carry from frame to frame; rows first."""

    phase: Tensor  # (B,) float64, cycles of the fundamental at the end of the frame, below 1
    hertz: Tensor  # (B,) float64, the pitch arrived at
    amplitudes: Tensor  # (B, HARMONICS)


class HarmonicDecoderState(NamedTuple):
    """What a `harmonic` decoder carries from chunk to chunk."""

    frame: TrunkState
    reader: TrunkState
    harmonics: HarmonicState


def _below_one(turns: Tensor) -> Tensor:
    """Without whole turns. `%` on vectors, and sines of large angles, let a row's neighbours decide its last bit."""
    return turns - turns.floor()


def _mel(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz.double() / 700)


def band_hertz() -> Tensor:
    """The middle of each band, equally spaced in mel: (BANDS,) Hz"""
    ends = _mel(torch.tensor([LINE_HZ, LINE_HZ * LINES]))
    mel = torch.linspace(float(ends[0]), float(ends[1]), BANDS, dtype=torch.float64)
    return (700 * (10 ** (mel / 2595) - 1)).float()


def band_shapes() -> Tensor:
    """How much each band counts at each line, triangles in mel that sum to one: (BANDS, LINES)"""
    mel = _mel(LINE_HZ * torch.arange(1, LINES + 1))
    place = (mel - mel[0]) / (mel[-1] - mel[0]) * (BANDS - 1)  # of each line, in bands
    shapes: Tensor = (1 - (place - torch.arange(BANDS)[:, None]).abs()).clamp_min(0).float()
    return shapes


def line_waves() -> Tensor:
    """Cosine and sine of every line over a frame, (2, LINES, 320): the rows of a Fourier transform."""
    turns = torch.outer(torch.arange(1, LINES + 1), torch.arange(HOP_SAMPLES)) % HOP_SAMPLES
    angle = 2 * math.pi * turns.double() / HOP_SAMPLES
    return torch.stack([angle.cos(), angle.sin()]).float()


class PitchEstimator(FrameTrunk):
    """Latents to pitch and to the share of each band that is harmonics of it."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__(dim, blocks, expansion, kernel)
        self.bins = nn.Linear(dim, PITCH_BINS)
        self.share = nn.Linear(dim, BANDS)
        steps = torch.linspace(math.log(PITCH_MIN_HZ), math.log(PITCH_MAX_HZ), PITCH_BINS, dtype=torch.float64)
        self.register_buffer("log_hertz", steps, persistent=False)
        self.log_hertz: Tensor

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `features` gives, (B, T, dim) -> logits of pitch (B, T, PITCH_BINS) and of shares (B, T, BANDS)"""
        return self.bins(x).float(), self.share(x).float()

    def pitch(self, logits: Tensor) -> Tensor:
        """Logits (..., PITCH_BINS) -> Hz (...) float64: the likeliest bin, drawn towards those near it.

        Their probabilities' mean of the logarithm; in double precision, because a phase adds up what a pitch is off.
        """
        best = logits.argmax(-1, keepdim=True)
        far = (torch.arange(PITCH_BINS, device=logits.device) - best).abs() > NEAR_BINS
        near = logits.double().masked_fill(far, -torch.inf).softmax(-1)
        return torch.exp(near @ self.log_hertz)


class HarmonicDecoder(Decoder):
    """Latents at 75 Hz to samples: a `FrameDecoder`, and sines that take over what it has of one voice's harmonics."""

    def __init__(self, frame: FrameDecoder, reader: PitchEstimator) -> None:
        super().__init__()
        self.frame, self.reader = frame, reader
        for name, table in (("shapes", band_shapes()), ("waves", line_waves())):
            self.register_buffer(name, table, persistent=False)
        lines = LINE_HZ * torch.arange(1.0, LINES + 1)
        self.register_buffer("lines", lines, persistent=False)  # (LINES,) Hz
        self.register_buffer("harmonics", torch.arange(1.0, HARMONICS + 1), persistent=False)
        self.shapes: Tensor
        self.waves: Tensor
        self.lines: Tensor
        self.harmonics: Tensor

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        shape = (config.frame_expansion, config.frame_kernel)
        frame = FrameDecoder(config.frame_dim, config.frame_blocks, *shape)
        return cls(frame, PitchEstimator(config.pitch_dim, config.pitch_blocks, *shape))

    @property
    def receptive_field(self) -> int:
        return 1 + max(self.frame.receptive_field, self.reader.receptive_field)  # 1: pitch and amplitudes before

    @property
    def output_layer(self) -> nn.Linear:
        return self.frame.output_layer

    def split(self, frames: Tensor, shares: Tensor, hertz: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, 320) by shares' logits (B, T, BANDS) -> what stays, and amplitudes (B, T, HARMONICS)

        hertz: (B, T), without a gradient: it is taught by the real pitch, not by what comes of it
        """
        hertz = hertz.float()
        real, imaginary = frames @ self.waves[0].t(), frames @ self.waves[1].t()  # (B, T, LINES)
        voiced = 1 / (1 + torch.exp(-shares.clamp_min(-30.0)))  # torch's sigmoid rounds by the place in the batch
        share = (voiced - SHARE_FROM).clamp_min(0.0) * (SHARE_MAX / (1 - SHARE_FROM)) @ self.shapes
        taken = (1 - torch.sqrt(1 - share)) * (2 / HOP_SAMPLES)
        rest = frames - (taken * real) @ self.waves[0] - (taken * imaginary) @ self.waves[1]
        power = share * (real.square() + imaginary.square()) * (2 / HOP_SAMPLES) ** 2
        distance = (self.lines - (self.harmonics * hertz[..., None])[..., None]).abs()  # (B, T, HARMONICS, LINES)
        weights = (1 - distance / hertz[..., None, None]).clamp_min(0.0)
        gathered = (weights @ power[..., None])[..., 0]
        return rest, torch.sqrt(gathered + POWER_FLOOR) - math.sqrt(POWER_FLOOR)

    def synthesise_harmonics(
        self, hertz: Tensor, amplitudes: Tensor, before: HarmonicState | None
    ) -> tuple[Tensor, HarmonicState]:
        """Sines from pitch (B, T) float64 and amplitudes (B, T, HARMONICS): (B, T, 320), and what the next frame needs.

        A clip begins with its first pitch, at phase 0, from silence.
        """
        rows = len(hertz)
        if before is None:
            nothing = amplitudes.new_zeros(rows, HARMONICS)
            phase_zero = torch.zeros(rows, dtype=torch.float64, device=hertz.device)
            before = HarmonicState(phase_zero, hertz[:, 0], nothing)
        from_hertz = torch.cat([before.hertz[:, None], hertz[:, :-1]], 1)
        from_amplitudes = torch.cat([before.amplitudes[:, None], amplitudes[:, :-1]], 1)
        with torch.no_grad():
            step = hertz - from_hertz
            advance = (hertz * HOP_SAMPLES - step * (RAMP / 2)) / SAMPLE_RATE_HZ  # cycles of a frame
            ends = before.phase[:, None] + advance.cumsum(1)
            starts = _below_one(torch.cat([before.phase[:, None], ends[:, :-1]], 1))
            n = torch.arange(1, HOP_SAMPLES + 1, dtype=torch.float64, device=hertz.device)
            ramped = n.clamp_max(RAMP)
            # the integral of a pitch that moves on a line over the ramp and then stays
            turned = hertz[..., None] * n - step[..., None] * (ramped - ramped.square() / (2 * RAMP))
            phase = _below_one(starts[..., None] + turned / SAMPLE_RATE_HZ).float()  # (B, T, 320)
            sines = torch.sin(2 * math.pi * _below_one(phase[..., None] * self.harmonics))  # (B, T, 320, HARMONICS)
        both = torch.stack([from_amplitudes, amplitudes], -1)  # (B, T, HARMONICS, 2)
        old, new = (sines @ both).unbind(-1)
        arrived = (ramped / RAMP).float()
        last = amplitudes[:, -1].detach().clone()  # no view of the whole chunk
        after = HarmonicState(_below_one(ends[:, -1]), hertz[:, -1].clone(), last)
        return old + arrived * (new - old), after

    def render(
        self, frames: Tensor, shares: Tensor, hertz: Tensor, before: HarmonicState | None = None
    ) -> tuple[Tensor, HarmonicState]:
        """Frames (B, T, 320), shares' logits (B, T, BANDS), Hz (B, T) float64 -> samples (B, 1, 320 T), state"""
        rest, amplitudes = self.split(frames, shares, hertz)
        harmonics, after = self.synthesise_harmonics(hertz, amplitudes, before)
        return (rest + harmonics).flatten(1)[:, None], after

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, 1, 320 T)"""
        frames = self.frame.frames_from(self.frame.features(latents))
        bins, shares = self.reader.read(self.reader.features(latents))
        return self.render(frames.float(), shares, self.reader.pitch(bins))[0]

    def stream(self, latents: Tensor, state: HarmonicDecoderState | None) -> tuple[Tensor, HarmonicDecoderState]:
        features, frame = self.frame.stream_features(latents, state and state.frame)
        frames = self.frame.frames_from(features)
        features, reader = self.reader.stream_features(latents, state and state.reader)
        bins, shares = self.reader.read(features)
        samples, harmonics = self.render(frames, shares, self.reader.pitch(bins), state and state.harmonics)
        return samples, HarmonicDecoderState(frame, reader, harmonics)
