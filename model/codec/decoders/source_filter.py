"""The `source_filter` decoder: sources that run on from frame to frame, through filters that the network draws.

Three sources, as in harmonic-plus-noise models (Stylianou, 2001) and DDSP (arXiv 2001.04643):

* pulses at the pitch that the tokens carry, through a minimum-phase filter: voices;
* white noise through another one: consonants, breath, hammers;
* a bank of sines on the semitones, each with its own amplitude: chords, which no single pitch can make.

How much of each is heard, and in which bands, is the network's choice, by the sound and not by a label. Phase is in the
decoder's state and in no token, so the tokens need not carry what cannot be predicted. A stateless decoder
(`model.codec.decoders.frame`) gives every steady sound a period of one frame: 75 Hz or a multiple.

A subframe (160 samples) has one filter of each kind. Its source is multiplied by a level that moves on a line from the
last subframe's, and starts its own responses, which ring on over what follows; so filters change without a click.
"""

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.config import CodecConfig
from model.codec.decoders.frame import FrameTrunk, TrunkState
from model.codec.decoders.harmonic import NEAR_BINS, PITCH_BINS, PITCH_MAX_HZ, PITCH_MIN_HZ
from model.codec.encoders.spectral import NOTES, note_hertz
from model.codec.interface import Decoder
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ

SUBFRAME = 160  # samples
SUBFRAMES = HOP_SAMPLES // SUBFRAME
BANDS = 72  # of a filter, centres equally spaced in mel from 0 to 12 kHz
FFT = 1024
RESPONSE = FFT - SUBFRAME  # samples for which a filter rings on after its subframe
BINS = FFT // 2 + 1
GAIN_MIN, GAIN_MAX = -11.0, 3.0  # natural log of a band's gain
NOTE_MIN = -11.0  # natural log of a sine's amplitude, at most 0
PITCH_STEPS = 64  # of a hertz
RAMP = 80  # samples in which a pitch arrives
PULSE_MAX_HZ = 11_000.0  # highest harmonic of the pulses
HEADS = SUBFRAMES * (2 * BANDS + NOTES)  # what the network gives for a frame, beside the pitch
SOURCES = 2  # that are filtered: pulses, noise
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64


class Sources(NamedTuple):
    """What the decoder's sources and filters carry from frame to frame; rows first."""

    frames: Tensor  # (B,) int64, how many came before: the place in the noise and in the sines
    phase: Tensor  # (B,) float64, cycles of the pitch at the end of the frame, below 1
    hertz: Tensor  # (B,) float64, the pitch arrived at
    levels: Tensor  # (B, 2), of pulses and noise at the end of the frame
    amplitudes: Tensor  # (B, NOTES), of the sines
    ringing: Tensor  # (B, RESPONSE), what the filters' responses will add to the samples that come


class SourceFilterState(NamedTuple):
    """What a `source_filter` decoder carries from chunk to chunk."""

    trunk: TrunkState
    sources: Sources


def _below_one(turns: Tensor) -> Tensor:
    """Without whole turns. `%` on vectors, and sines of large angles, let a row's neighbours decide its last bit."""
    return turns - turns.floor()


def band_shapes() -> Tensor:
    """How much each band counts at each bin, triangles in mel that sum to one: (BANDS, BINS) float64"""
    hertz = torch.arange(BINS, dtype=torch.float64) * SAMPLE_RATE_HZ / FFT
    mel = 2595 * torch.log10(1 + hertz / 700)
    place = mel / mel[-1] * (BANDS - 1)
    return (1 - (place - torch.arange(BANDS, dtype=torch.float64)[:, None]).abs()).clamp_min(0.0)


def log_responses() -> tuple[Tensor, Tensor]:
    """Each band's part in the logarithm of a minimum-phase response: log gains and phases, (BANDS, BINS) each.

    By the real cepstrum, with its second half added to its first (Oppenheim and Schafer, 1975).
    """
    shapes = band_shapes()
    cepstrum = torch.fft.irfft(shapes.to(torch.complex128), n=FFT)
    folded = torch.zeros_like(cepstrum)
    folded[:, 0], folded[:, FFT // 2] = cepstrum[:, 0], cepstrum[:, FFT // 2]
    folded[:, 1 : FFT // 2] = 2 * cepstrum[:, 1 : FFT // 2]
    return shapes.float(), torch.fft.rfft(folded).imag.float()


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's int64 has it."""
    return value - 2**64 if value >= 2**63 else value


def noise(first: Tensor, count: int) -> Tensor:
    """White noise of unit variance, uniform, by the sample's number alone: (B,) int64 of the first -> (B, count)

    The output function of splitmix64 (Steele et al., 2014) over a counter, so that any part of it can be made anew.
    """

    def shifted(x: Tensor, by: int) -> Tensor:  # logical, where torch's is arithmetic
        return (x >> by) & ((1 << (64 - by)) - 1)

    number = first[:, None] + torch.arange(1, count + 1, device=first.device)
    x = number * _signed(_GOLDEN)
    x = (x ^ shifted(x, 30)) * _signed(_MIX_1)
    x = (x ^ shifted(x, 27)) * _signed(_MIX_2)
    x = x ^ shifted(x, 31)
    return (shifted(x, 40).float() * 2.0**-24 - 0.5) * math.sqrt(12.0)


class SourceFilterDecoder(Decoder):
    """Latents at 75 Hz to samples."""

    def __init__(self, dim: int, blocks: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.trunk = FrameTrunk(dim, blocks, expansion, kernel)
        self.bins = nn.Linear(dim, PITCH_BINS)  # logits of the pitch
        self.head = nn.Linear(dim, HEADS)  # gains of the filters and amplitudes of the sines
        with torch.no_grad():
            self.head.weight *= 0.3
            self.head.bias.zero_()
        steps = torch.linspace(math.log(PITCH_MIN_HZ), math.log(PITCH_MAX_HZ), PITCH_BINS, dtype=torch.float64)
        gains, phases = log_responses()
        tables = {"log_hertz": steps, "band_gains": gains, "band_phases": phases, "note_hertz": note_hertz()}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.log_hertz: Tensor
        self.band_gains: Tensor
        self.band_phases: Tensor
        self.note_hertz: Tensor

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        return cls(config.frame_dim, config.frame_blocks, config.frame_expansion, config.frame_kernel)

    @property
    def receptive_field(self) -> int:
        """Without the place in the noise and in the sines, which no frame needs of those before it."""
        return self.trunk.receptive_field - (-RESPONSE // HOP_SAMPLES)  # what still rings began so many frames ago

    def pitch(self, features: Tensor) -> Tensor:
        """(B, T, dim) -> Hz (B, T) float64: the likeliest bin, drawn towards those near it.

        Their probabilities' mean of the logarithm; in double precision, because a phase adds up what a pitch is off.
        And in steps of 1/64 Hz (0.4 cents at 70 Hz), so that logits that differ in their last bit, as in other chunks
        or in machine code, give the same pitch and not phases that drift apart.
        No gradient: the logits are taught by the real pitch, not by what comes of them.
        """
        logits = self.bins(features).detach().float()
        best = logits.argmax(-1, keepdim=True)
        far = (torch.arange(PITCH_BINS, device=logits.device) - best).abs() > NEAR_BINS
        near = logits.double().masked_fill(far, -torch.inf).softmax(-1)
        return torch.round(torch.exp(near @ self.log_hertz) * PITCH_STEPS) / PITCH_STEPS

    def controls(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, dim) -> levels (B, S, 2), log gains about them (B, S, 2, BANDS), amplitudes (B, S, NOTES); S = 2 T"""
        raw = self.head(features).float().view(len(features), -1, HEADS // SUBFRAMES)  # (B, S, 2 BANDS + NOTES)
        gains = (3.0 * raw[..., : SOURCES * BANDS] - 4.0).clamp(GAIN_MIN, GAIN_MAX)
        gains = gains.view(*gains.shape[:2], SOURCES, BANDS)
        level = gains.mean(-1)
        amplitudes = torch.exp((3.0 * raw[..., 2 * BANDS :] - 6.0).clamp(NOTE_MIN, 0.0))
        return torch.exp(level), gains - level[..., None], amplitudes

    def start(self, hertz: Tensor) -> Sources:
        """The state before a clip of these pitches (B, T): silence."""
        rows, device = len(hertz), hertz.device
        levels, amplitudes, ringing = (torch.zeros(rows, n, device=device) for n in (SOURCES, NOTES, RESPONSE))
        frames = torch.zeros(rows, dtype=torch.int64, device=device)
        return Sources(frames, torch.zeros(rows, dtype=torch.float64, device=device), hertz[:, 0], levels, amplitudes,
                       ringing)  # fmt: skip

    @torch.no_grad()
    def pulses(self, hertz: Tensor, before: Sources) -> tuple[Tensor, Tensor]:
        """Pitch (B, T) -> pulses (B, 320 T), as strong at every pitch (power 0.46), and the phase at the end (B,)

        A closed form of the sum of all harmonics below `PULSE_MAX_HZ`; the one above is faded in as the pitch falls.
        """
        came_from = torch.cat([before.hertz[:, None], hertz[:, :-1]], 1)
        step = hertz - came_from
        advance = (hertz * HOP_SAMPLES - step * (RAMP / 2)) / SAMPLE_RATE_HZ  # cycles of a frame
        ends = before.phase[:, None] + advance.cumsum(1)
        starts = _below_one(torch.cat([before.phase[:, None], ends[:, :-1]], 1))
        n = torch.arange(1, HOP_SAMPLES + 1, dtype=torch.float64, device=hertz.device)
        ramped = n.clamp_max(RAMP)
        # the integral of a pitch that moves on a line over the ramp and then stays
        turned = hertz[..., None] * n - step[..., None] * (ramped - ramped.square() / (2 * RAMP))
        phase = _below_one(starts[..., None] + turned / SAMPLE_RATE_HZ)  # (B, T, 320)
        now = came_from[..., None] + step[..., None] * (ramped / RAMP)
        count = PULSE_MAX_HZ / now  # harmonics, with a fraction
        whole = count.floor()

        def angle(turns: Tensor) -> Tensor:  # whole turns are taken off in double precision, where they are exact
            return (2 * math.pi * _below_one(turns)).float()

        half = torch.sin(angle(phase / 2))
        summed = torch.sin(angle((whole + 0.5) * phase)) / (2 * half.clamp_min(1e-4)) - 0.5
        summed = torch.where(half < 1e-4, whole.float(), summed)
        summed = summed + (count - whole).float() * torch.cos(angle((whole + 1) * phase))
        return (summed * torch.sqrt(2 * now / SAMPLE_RATE_HZ).float()).flatten(1), _below_one(ends[:, -1])

    def filtered(self, source: Tensor, levels: Tensor, shapes: Tensor, before: Sources) -> tuple[Tensor, Tensor]:
        """Sources (B, 2, 160 S), levels (B, S, 2), log gains (B, S, 2, BANDS) -> (B, 160 S), what rings on.

        Each subframe's convolution wraps round after `RESPONSE` samples, into the same subframe: causal to a frame.
        """
        with torch.no_grad():
            pieces = source.view(len(source), SOURCES, -1, SUBFRAME).transpose(1, 2)  # (B, S, 2, 160)
            ramp = torch.arange(1, SUBFRAME + 1, device=source.device) / SUBFRAME
            rising = torch.fft.rfft(pieces * ramp, n=FFT)  # (B, S, 2, BINS)
            falling = torch.fft.rfft(pieces * (1 - ramp), n=FFT)
        came_from = torch.cat([before.levels[:, None], levels[:, :-1]], 1)
        spectra = came_from[..., None] * falling + levels[..., None] * rising
        response = torch.polar(torch.exp(shapes @ self.band_gains), shapes @ self.band_phases)
        heard = torch.fft.irfft((spectra * response).sum(2), n=FFT)  # (B, S, FFT)
        count = heard.shape[1]
        length = count * SUBFRAME + RESPONSE
        summed = F.fold(heard.transpose(1, 2), (1, length), (1, FFT), stride=(1, SUBFRAME))[:, 0, 0]
        summed = torch.cat([summed[:, :RESPONSE] + before.ringing, summed[:, RESPONSE:]], 1)
        return summed[:, : count * SUBFRAME], summed[:, count * SUBFRAME :]

    def sines(self, amplitudes: Tensor, before: Sources) -> Tensor:
        """Amplitudes (B, S, NOTES) -> the sum of the running sines (B, 160 S)"""
        count = amplitudes.shape[1]
        with torch.no_grad():
            # the phase where each subframe begins, then a turn that is the same for all of them
            first = before.frames[:, None] * HOP_SAMPLES + SUBFRAME * torch.arange(count, device=amplitudes.device)
            offsets = 0.37 * torch.arange(NOTES, dtype=torch.float64, device=amplitudes.device)
            begins = _below_one(first[..., None] * self.note_hertz / SAMPLE_RATE_HZ + offsets)  # (B, S, NOTES)
            angle = (2 * math.pi * begins).float()
            n = torch.arange(1, SUBFRAME + 1, dtype=torch.float64, device=amplitudes.device)
            turn = (2 * math.pi * _below_one(self.note_hertz[:, None] * n / SAMPLE_RATE_HZ)).float()
            waves = torch.cat([turn.cos(), turn.sin()])  # (2 NOTES, SUBFRAME)
            ramp = (n / SUBFRAME).float()
        came_from = torch.cat([before.amplitudes[:, None], amplitudes[:, :-1]], 1)
        sine, cosine = angle.sin(), angle.cos()

        def played(a: Tensor) -> Tensor:  # (B, S, NOTES) -> (B, S, SUBFRAME)
            return torch.cat([a * sine, a * cosine], -1) @ waves

        old = played(came_from)
        return (old + ramp * (played(amplitudes) - old)).flatten(1)

    def render(
        self, features: Tensor, before: Sources | None = None, shares: Tensor | None = None
    ) -> tuple[Tensor, Sources]:
        """Features of the trunk (B, T, dim) -> samples (B, 1, 320 T), and what the next frame needs

        A clip begins with its first pitch, from silence. For training, ``shares`` (B, 2) of pulses and of sines are let
        through.
        """
        hertz = self.pitch(features)
        before = before or self.start(hertz)
        levels, shapes, amplitudes = self.controls(features)
        if shares is not None:
            levels = levels * torch.stack([shares[:, 0], torch.ones_like(shares[:, 0])], 1)[:, None]
            amplitudes = amplitudes * shares[:, 1, None, None]
        pulses, phase = self.pulses(hertz, before)
        white = noise(before.frames * HOP_SAMPLES, hertz.shape[1] * HOP_SAMPLES)
        heard, ringing = self.filtered(torch.stack([pulses, white], 1), levels, shapes, before)
        samples = heard + self.sines(amplitudes, before)
        after = Sources(
            before.frames + hertz.shape[1], phase, hertz[:, -1].clone(), levels[:, -1].detach().clone(),
            amplitudes[:, -1].detach().clone(), ringing.detach().clone(),
        )  # fmt: skip
        return samples[:, None], after

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, T) -> (B, 1, 320 T)"""
        return self.render(self.trunk.features(latents))[0]

    def stream(self, latents: Tensor, state: SourceFilterState | None) -> tuple[Tensor, SourceFilterState]:
        features, trunk = self.trunk.stream_features(latents, state and state.trunk)
        samples, sources = self.render(features, state and state.sources)
        return samples, SourceFilterState(trunk, sources)
