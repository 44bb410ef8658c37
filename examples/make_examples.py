"""Makes the two example clips: a sentence spoken by espeak-ng, a minuet played by FluidSynth.

    python examples/make_examples.py [FOLDER]

Needs Debian's packages espeak-ng, fluidsynth and fluid-soundfont-gm. The clips are 24 kHz mono FLAC.
"""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from model.constants import SAMPLE_RATE_HZ
from model.training.corpus import read_audio, render_midi

TEXT = "The night train left the harbour a little after nine, and as the lights grew small, I opened the letter and"
SPEECH_RMS = 0.06  # near what the training speech has

TICKS = 480  # a quarter note
TEMPO_US = 500_000  # microseconds a quarter note: 120 a minute
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

# Christian Petzold (1677-1733), Minuet in G (BWV Anh. 114), bars 1 to 5, two voices: note and length in quarters.
UPPER = (
    "D5 1  G4 .5  A4 .5  B4 .5  C5 .5 | D5 1  G4 1  G4 1 | E5 1  C5 .5  D5 .5  E5 .5  F#5 .5 | G5 1  G4 1  G4 1 |"
    "C5 1  D5 .5  C5 .5  B4 .5  A4 .5"
)
LOWER = "G3 2  A3 1 | B3 3 | C4 3 | B3 3 | A3 3"


def parse(voice: str) -> list[tuple[int, int]]:
    """Notes and lengths, "D5 1  G4 .5", -> [(MIDI note, ticks)]; bar lines are for the eye."""
    words = voice.replace("|", " ").split()
    return [
        (12 * (int(name[-1]) + 1) + STEPS[name[0]] + name.count("#"), round(float(length) * TICKS))
        for name, length in zip(words[::2], words[1::2], strict=True)
    ]


def _variable(number: int) -> bytes:
    """A MIDI variable-length quantity: 7 bits a byte, high bit set on all but the last."""
    out = [number & 0x7F]
    while number := number >> 7:
        out.append(0x80 | number & 0x7F)
    return bytes(reversed(out))


def midi_bytes(voices: list[list[tuple[int, int]]]) -> bytes:
    """A format-0 MIDI file (General MIDI piano) of voices that start together."""
    events: list[tuple[int, int, int, int]] = []  # tick, status, note, velocity; at one tick, note-offs come first
    for velocity, voice in zip((84, 62), voices, strict=True):
        tick = 0
        for note, length in voice:
            events += [(tick, 0x90, note, velocity), (tick + length - 12, 0x80, note, 0)]
            tick += length
    track = b"\x00\xff\x51\x03" + TEMPO_US.to_bytes(3, "big") + b"\x00\xc0\x00"  # tempo, program 0
    now = 0
    for tick, status, note, velocity in sorted(events):
        track += _variable(tick - now) + bytes([status, note, velocity])
        now = tick
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track


def speech() -> npt.NDArray[np.float32]:
    """The sentence, broken off before its last words and without the silence after it: (N,) float32 at 24 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(wav), TEXT], check=True)
        samples = read_audio(wav)
    samples = samples[: np.flatnonzero(np.abs(samples) > 0.01)[-1] + 1]
    return samples * np.float32(SPEECH_RMS / np.sqrt(np.mean(samples**2)))


def music() -> npt.NDArray[np.float32]:
    """The first bars of the minuet, cut where bar 6 would begin: the continuation carries on from there."""
    voices = [parse(UPPER), parse(LOWER)]
    with tempfile.TemporaryDirectory() as folder:
        midi = Path(folder) / "minuet.mid"
        midi.write_bytes(midi_bytes(voices))
        samples = render_midi(midi)
    seconds = sum(ticks for _, ticks in voices[0]) / TICKS * TEMPO_US / 1e6
    return samples[: round(seconds * SAMPLE_RATE_HZ)]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in (("speech.flac", speech()), ("music.flac", music())):
        soundfile.write(folder / name, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        print(f"{folder / name}: {len(samples) / SAMPLE_RATE_HZ:.2f} s, peak {np.abs(samples).max():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
