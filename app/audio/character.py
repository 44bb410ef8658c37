"""Whether a clip is likely something else than speech or piano, which is what the shipped weights know.

Three kinds of sound are told apart, by measures that stand far from those of speech and piano, noisy or reverberant
ones among them (docs/results/character.md). A likelihood is no such measure: steady noise is likelier than speech.
"""

import numpy as np

from app.audio.downmix import Downmix
from app.audio.notices import Notice
from app.audio.samples import Samples
from model.constants import SAMPLE_RATE_HZ

CODE = "not_speech_or_piano"
WINDOW = 1024  # samples: 43 ms, two periods of the lowest pitch and more
FIRST_SAMPLES = 10 * SAMPLE_RATE_HZ  # of a clip are looked at: 7 ms of work
MIN_FRAMES = 60  # 2.6 s that are not pauses; a chord may be held for less, or a room be heard before somebody speaks
PAUSE = 1e-4  # of the power of the loudest frame: 40 dB below it
BANDS, LOWEST_HZ, HIGHEST_HZ = 16, 100.0, 8_000.0
SHORTEST_LAG, LONGEST_LAG = SAMPLE_RATE_HZ // 1_000, SAMPLE_RATE_HZ // 60  # of pitches
STEADY = 0.38  # nats of power by which a band's share of the sound varies; speech and piano: 0.46 and more
PURE = 0.97  # the height of half of the frames' pitch peaks at least; speech and piano: 0.88 and less
UNPITCHED, PITCHED_PEAK = 0.02, 0.4  # share of frames with a peak of this height; and they are struck:
STRUCK = 1.8  # nats by which the bands' levels vary; speech in noise, which hides its pitch: 1.7 and less

_HANN = np.hanning(WINDOW).astype(np.float32)
_OWN = np.fft.irfft(np.abs(np.fft.rfft(_HANN, 2 * WINDOW)) ** 2)[: LONGEST_LAG + 1]


def _bands() -> Samples:
    """(513, 16): which bins belong to which band, evenly spaced in mel; each band's sum is a mean."""
    hertz = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE_HZ)
    mel = 2595 * np.log10(1 + hertz / 700)
    lowest, highest = 2595 * np.log10(1 + np.array([LOWEST_HZ, HIGHEST_HZ]) / 700)
    place = np.floor((mel - lowest) / (highest - lowest) * BANDS)
    member = (place[:, None] == np.arange(BANDS)).astype(np.float32)
    return np.asarray(member / np.maximum(member.sum(0), 1), np.float32)


_BANDS = _bands()


def measures(samples: Samples) -> dict[str, float] | None:
    """``steadiness``, ``purity``, ``pitched`` and ``struck`` of (N,) samples at 24 kHz; None for too few of them."""
    frames = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW) * _HANN
    powers = np.square(np.abs(np.fft.rfft(frames)), dtype=np.float32)
    loud = powers.sum(1)
    active = loud > PAUSE * loud.max(initial=0)
    if active.sum() < MIN_FRAMES or not loud.max() > 0:
        return None
    levels = np.log(powers[active] @ _BANDS + 1e-10)
    shares = levels - levels.mean(1, keepdims=True)
    rough = np.diff(samples, prepend=samples[:1])  # else low noise would look like a pitch
    rough = rough[: len(frames) * WINDOW].reshape(-1, WINDOW)[active] * _HANN
    alike = np.fft.irfft(np.square(np.abs(np.fft.rfft(rough, 2 * WINDOW))))[:, : LONGEST_LAG + 1]
    peaks = (alike / (alike[:, :1] + 1e-12) / (_OWN / _OWN[0]))[:, SHORTEST_LAG:].max(1)
    return {
        "steadiness": float(np.median(shares.std(0))),
        "purity": float(np.median(peaks)),
        "pitched": float((peaks > PITCHED_PEAK).mean()),
        "struck": float(np.median(levels.std(0))),
    }


def sounds_like(samples: Samples) -> str | None:
    """What else a clip is, likely; None where nothing speaks against speech and piano."""
    found = measures(samples)
    if found is None:
        return None
    if found["purity"] > PURE:
        return "pure tones"
    if found["steadiness"] < STEADY:
        return "a steady noise or tone"
    if found["pitched"] <= UNPITCHED and found["struck"] > STRUCK:
        return "drums, or strokes without a pitch"
    return None


def heard_notices(samples: Samples) -> tuple[Notice, ...]:
    """What there is to tell of a recording (N,) of one channel at 24 kHz that is no file: silence, or its character."""
    silent = Downmix().notices(len(samples), float(np.abs(samples).max(initial=0.0)))
    character = Character()
    character.add(samples)
    return silent or character.notices()


class Character:
    """Of a clip that comes in pieces: its beginning is kept, and looked at in the end."""

    def __init__(self) -> None:
        self._kept: list[Samples] = []
        self._left = FIRST_SAMPLES

    def add(self, samples: Samples) -> None:
        if self._left > 0:
            piece = samples[: self._left].copy()
            self._kept.append(piece)
            self._left -= len(piece)

    def notices(self) -> tuple[Notice, ...]:
        found = sounds_like(np.concatenate(self._kept)) if self._kept else None
        if found is None:
            return ()
        message = f"the clip sounds like {found}, and neither like speech nor like piano, which the model knows"
        return (Notice(CODE, message),)
