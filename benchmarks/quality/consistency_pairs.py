"""Pairs of clips, in the manner of SALMon (arXiv 2409.07437): one goes on as it began, the other changes half way.

The clips of a pair share their first half to the sample. Each kind of change counts in both orders: condition A goes
on as A or turns into B, and B goes on as B or turns into A, so that a model that merely finds one of the conditions
likelier is right half of the time. Both clips have the same crossfade at the joint, and where a change brings other
samples with it (another utterance, another stretch of noise, another impulse response) so does the lack of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ

Signal = npt.NDArray[np.float64]
HALF_FRAMES = 150  # 2 s before the joint, 2 s after it
HALF = HALF_FRAMES * HOP_SAMPLES
FADE = 240  # 10 ms, from the joint on
RMS = 0.06  # of the speech in every clip: near the corpus's mean
SNR_DB = 10.0
RT60_SECONDS = (0.25, 0.9)
DIRECT_DB = 0.0  # the direct sound's energy over the reverberation's: a listener at the critical distance
GAIN_DB = (0.0, -12.0)
TILT_DB = (3.0, -3.0)  # an octave, about 1 kHz
BABBLE_VOICES = 6
KINDS = ("speaker", "room", "noise", "gain", "tilt")
COLOURS = ("white", "pink", "brown", "babble")


@dataclass(frozen=True)
class Pair:
    """Two clips (2 HALF,) of one beginning; ``base`` is what a bootstrap draws: pairs of one base go together."""

    kind: str
    base: str
    consistent: Signal
    changed: Signal


def level(signal: Signal, rms: float = RMS) -> Signal:
    """The signal at a root mean square."""
    scaled: Signal = signal * (rms / np.sqrt(np.mean(signal**2) + 1e-12))
    return scaled


def join(before: Signal, after: Signal) -> Signal:
    """``before`` until HALF, then ``after``, faded within FADE samples; both are (2 HALF,) on one time axis."""
    fade = np.clip((np.arange(2 * HALF) - HALF + 0.5) / FADE, 0.0, 1.0)
    fade = 0.5 - 0.5 * np.cos(np.pi * fade)
    joined: Signal = before * (1 - fade) + after * fade
    return joined


@dataclass(frozen=True)
class Condition:
    """A way to sound, as (2 HALF,) samples on one time axis: how a clip begins, and how it goes on after the joint.

    ``rest`` is another instance of the same thing where a change would bring one, too.
    """

    start: Signal
    rest: Signal


def both_orders(kind: str, base: str, one: Condition, other: Condition) -> Iterator[Pair]:
    """Two pairs: one that begins in the first condition and one that begins in the second."""
    for first, second in ((one, other), (other, one)):
        yield Pair(kind, base, join(first.start, first.rest), join(first.start, second.rest))


def impulse_response(rt60: float, rng: np.random.Generator) -> Signal:
    """Exponentially decaying noise that falls by 60 dB in ``rt60`` seconds, after a direct sound; 1.2 * rt60 long."""
    times = np.arange(round(1.2 * rt60 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / rt60)
    tail *= np.sqrt(10 ** (-DIRECT_DB / 10) / np.sum(tail**2))
    tail[0] += 1.0
    response: Signal = tail
    return response


def reverberant(signal: Signal, response: Signal) -> Signal:
    """The signal in a room, as long as before and at the same level."""
    size = len(signal) + len(response)
    wet = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]
    return level(wet, float(np.sqrt(np.mean(signal**2))))


def coloured(colour: str, count: int, rng: np.random.Generator) -> Signal:
    """Noise whose power falls as 1 / f^0, 1 / f or 1 / f^2 above 50 Hz, root mean square 1."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ), 50.0)
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[colour]
    return level(np.fft.irfft(spectrum / frequency**slope, count), 1.0)


def babble(voices: Sequence[Signal], count: int, rng: np.random.Generator) -> Signal:
    """Several clips of other speakers at once, from random places, root mean square 1."""
    total = np.zeros(count)
    for index in rng.choice(len(voices), min(BABBLE_VOICES, len(voices)), replace=False):
        voice = voices[index]
        start = int(rng.integers(len(voice)))
        total += level(np.resize(np.roll(voice, -start), count))
    return level(total, 1.0)


def tilted(signal: Signal, db_an_octave: float) -> Signal:
    """A straight spectral slope about 1 kHz (flat below 50 Hz), at the same level."""
    frequency = np.maximum(np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE_HZ), 50.0)
    gain = 10 ** (db_an_octave * np.log2(frequency / 1000.0) / 20)
    return level(np.fft.irfft(np.fft.rfft(signal) * gain, len(signal)), float(np.sqrt(np.mean(signal**2))))


def voice(first: Signal, second: Signal) -> Condition:
    """A speaker who says the beginning of one utterance and goes on with that of another, both at one level."""
    heard = np.sqrt(np.mean(first[:HALF] ** 2)), np.sqrt(np.mean(second[:HALF] ** 2))
    return Condition(first * (RMS / (heard[0] + 1e-6)), np.roll(second, HALF) * (RMS / (heard[1] + 1e-6)))


def room(speech: Signal, rt60: float, rng: np.random.Generator) -> Condition:
    """A room, heard at two places: two impulse responses of one reverberation time."""
    return Condition(*(reverberant(speech, impulse_response(rt60, rng)) for _ in range(2)))


def noisy(speech: Signal, colour: str, voices: Sequence[Signal], rng: np.random.Generator) -> Condition:
    """Speech over two stretches of one kind of noise."""
    made = [
        babble(voices, len(speech), rng) if colour == "babble" else coloured(colour, len(speech), rng) for _ in range(2)
    ]
    return Condition(*(speech + noise * RMS * 10 ** (-SNR_DB / 20) for noise in made))


def unchanging(speech: Signal) -> Condition:
    """The same recording before and after the joint."""
    return Condition(speech, speech)


def spread(speakers: Sequence[str], count: int) -> list[int]:
    """Indices of up to ``count`` clips, one of each speaker in turn."""
    of: dict[str, list[int]] = {}
    for index, speaker in enumerate(speakers):
        of.setdefault(speaker, []).append(index)
    turns = range(max(map(len, of.values()), default=0))
    return [places[turn] for turn in turns for _, places in sorted(of.items()) if turn < len(places)][:count]


def pairs(clips: Sequence[tuple[str, str, Signal]], bases: int, seed: int = 0) -> Iterator[Pair]:
    """Two pairs of each kind for each of up to ``bases`` clips, spread over the speakers.

    Args:
        clips: (name, speaker, samples at 24 kHz). Those of 4 s or more are begun from; a speaker with only one
            such clip takes no part in the swap of speakers.
        bases: how many clips to begin from.
        seed: of all that is drawn, clip by clip.
    """
    long = [(name, speaker, x[: 2 * HALF]) for name, speaker, x in clips if len(x) >= 2 * HALF]
    of: dict[str, list[Signal]] = {}
    for _, speaker, x in long:
        of.setdefault(speaker, []).append(x)
    for index in spread([speaker for _, speaker, _ in long], bases):
        name, speaker, samples = long[index]
        rng = np.random.default_rng([seed, index])
        mates = [x for x in of[speaker] if x is not samples]
        strangers = [who for who in sorted(of) if who != speaker and len(of[who]) > 1]
        if mates and strangers:
            theirs = of[strangers[rng.integers(len(strangers))]]
            one, two = rng.choice(len(theirs), 2, replace=False)
            own = voice(samples, mates[rng.integers(len(mates))])
            yield from both_orders("speaker", name, own, voice(theirs[one], theirs[two]))
        speech = level(samples)
        yield from both_orders("room", name, *(room(speech, rt60, rng) for rt60 in RT60_SECONDS))
        others = [x for _, who, x in clips if who != speaker]
        colours = rng.choice(COLOURS, 2, replace=False)
        yield from both_orders("noise", name, *(noisy(speech, str(colour), others, rng) for colour in colours))
        yield from both_orders("gain", name, *(unchanging(speech * 10 ** (gain / 20)) for gain in GAIN_DB))
        yield from both_orders("tilt", name, *(unchanging(tilted(speech, slope)) for slope in TILT_DB))
