"""Audio in and out: every format that the API names, resampling, caps, exact files."""

import io
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from app.audio.containers import sniff
from app.audio.decode import decode
from app.audio.mixing import limit
from app.errors import AudioInvalid, AudioTooLong, UnsupportedFormat
from tests.support.decoding import decoded_samples

RATE = 48_000
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)  # one second


def by_soundfile(form: str, subtype: str | None = None) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        soundfile.write(out, TONE, RATE, subtype, format=form)
        return out.getvalue()

    return make


def by_av(form: str, codec: str, layout: str = "mono") -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        with av.open(out, "w", format=form) as container:
            stream = container.add_stream(codec, rate=RATE, layout=layout)
            assert isinstance(stream, av.AudioStream)
            channels = np.repeat(TONE[None], 2 if layout == "stereo" else 1, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
            frame.sample_rate = RATE
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        return out.getvalue()

    return make


def big_endian() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, TONE, RATE, "PCM_16", "BIG", "WAV")
    return out.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "wav 16 bits": by_soundfile("WAV", "PCM_16"),
    "wav 24 bits": by_soundfile("WAV", "PCM_24"),
    "wav float": by_soundfile("WAV", "FLOAT"),
    "wav 8 bits": by_soundfile("WAV", "PCM_U8"),
    "wav u-law": by_soundfile("WAV", "ULAW"),
    "rf64": by_soundfile("RF64"),
    "flac": by_soundfile("FLAC"),
    "ogg vorbis": by_soundfile("OGG", "VORBIS"),
    "ogg opus": by_soundfile("OGG", "OPUS"),
    "mp3": by_soundfile("MP3"),
    "aiff": by_soundfile("AIFF"),
    "au": by_soundfile("AU"),
    "caf": by_soundfile("CAF"),
    "w64": by_soundfile("W64"),
    "wav big-endian": big_endian,
    "caf alac": by_av("caf", "alac"),
    "mp3 with tag": lambda: b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + by_soundfile("MP3")(),
    "m4a": by_av("ipod", "aac"),
    "m4a stereo": by_av("ipod", "aac", "stereo"),
    "mp4 alac": by_av("ipod", "alac"),
    "aac": by_av("adts", "aac"),
    "webm opus": by_av("webm", "libopus"),
    "mp3 in wav": by_av("wav", "libmp3lame"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_format(name: str) -> None:
    """A second of 440 Hz comes out as a second of 440 Hz, whatever it was packed in."""
    samples = decoded_samples(io.BytesIO(FORMATS[name]()), 10)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0.95 < len(samples) / 24_000 < 1.15  # codecs pad
    middle = samples[6_000:18_000] * np.hanning(12_000)
    spectrum = np.abs(np.fft.rfft(middle))
    assert abs(int(spectrum.argmax()) * 2 - 440) <= 2
    assert np.sqrt(np.mean(samples[6_000:18_000] ** 2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.05)


def test_flac_that_does_not_tell_its_length() -> None:
    """What `ffmpeg -f flac -` writes to a pipe."""
    content = bytearray(by_soundfile("FLAC")())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    samples = decoded_samples(io.BytesIO(bytes(content)), 10)
    np.testing.assert_array_equal(samples, decoded_samples(io.BytesIO(by_soundfile("FLAC")()), 10))


@pytest.mark.parametrize("claimed", [2**32 - 1, 10_000_000, 0, 1], ids=["streamed", "too much", "none", "one"])
def test_wav_header_that_lies(claimed: int) -> None:
    """The samples that are there are read, and no more."""
    content = bytearray(by_soundfile("WAV", "PCM_16")())
    at = content.index(b"data") + 4
    content[at : at + 4] = claimed.to_bytes(4, "little")
    assert len(decoded_samples(io.BytesIO(bytes(content)), 10)) == 24_000


def test_flac_header_that_lies() -> None:
    content = bytearray(by_soundfile("FLAC")())
    content[22:26] = (2**32 - 1).to_bytes(4, "big")
    heard = decode(io.BytesIO(bytes(content)), 10)
    np.testing.assert_array_equal(heard.samples, decoded_samples(io.BytesIO(by_soundfile("FLAC")()), 10))
    assert [warning.code for warning in heard.warnings] == ["audio_lost"]


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 96_000, 192_000])
def test_rates(rate: int, to_file: Any) -> None:
    samples = decoded_samples(io.BytesIO(to_file(np.zeros(rate, np.float32), rate)), 10)
    assert abs(len(samples) - 24_000) <= 1


@pytest.mark.parametrize(("rate", "channels"), [(655_350, 8), (655_350, 1), (48_000, 64)])
def test_samples_are_limited_and_not_only_seconds(rate: int, channels: int, to_file: Any) -> None:
    """Ten seconds may be asked for: a file may cost that many seconds of 8 channels at 48 kHz, whatever its rate."""
    read = 0
    content = to_file(np.zeros((9 * rate, channels) if channels > 1 else 9 * rate, np.int16), rate, "WAV", "PCM_16")

    class Counting(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal read
            got = super().readinto(buffer)
            read += got
            return got

    with pytest.raises(AudioTooLong, match="lower rate or fewer channels"):
        decoded_samples(Counting(content), 10)
    assert read < 2 * 10 * 384_000 + 16 * 65_536 * channels, "it stops there"
    assert len(decoded_samples(io.BytesIO(content), 60, 0.0, 0.5)) == 12_000


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 2), (48_000, 8), (384_000, 1)])
def test_what_people_record_is_taken(rate: int, channels: int, to_file: Any) -> None:
    samples = np.zeros((2 * rate, channels) if channels > 1 else 2 * rate, np.int16)
    assert len(decoded_samples(io.BytesIO(to_file(samples, rate, "WAV", "PCM_16")), 2)) == 48_000


def test_resampling_does_not_alias(to_file: Any) -> None:
    """A tone above the new band is gone; below it, it is as it was."""
    times = np.arange(RATE) / RATE
    high = decoded_samples(io.BytesIO(to_file(0.5 * np.sin(2 * np.pi * 15_000 * times), RATE, subtype="FLOAT")), 10)
    assert np.sqrt(np.mean(high[2_000:-2_000] ** 2)) < 1e-4
    low = decoded_samples(io.BytesIO(to_file(0.5 * np.sin(2 * np.pi * 1_000 * times), RATE, subtype="FLOAT")), 10)
    expected = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(low[2_000:22_000], expected[2_000:22_000], atol=1e-4)


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_averaged(channels: int, to_file: Any) -> None:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, (24_000, channels)).astype(np.float32)
    mono = decoded_samples(io.BytesIO(to_file(samples, subtype="FLOAT")), 10)
    np.testing.assert_allclose(mono, samples.mean(axis=1), atol=1e-6)


def test_24_khz_passes_unchanged(to_file: Any) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 150_000).astype(np.float32)
    np.testing.assert_array_equal(decoded_samples(io.BytesIO(to_file(samples, subtype="FLOAT")), 10), samples)


def test_window(to_file: Any) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 240_000).astype(np.float32)
    content = to_file(samples, subtype="FLOAT")
    part = decoded_samples(io.BytesIO(content), 2, 3.0, 4.5)
    np.testing.assert_array_equal(part, samples[72_000:108_000])
    np.testing.assert_array_equal(decoded_samples(io.BytesIO(content), 2, 8.5), samples[204_000:])
    with pytest.raises(AudioTooLong):
        decoded_samples(io.BytesIO(content), 2, 3.0)
    assert len(decoded_samples(io.BytesIO(content), 10.0)) == 240_000  # the limit itself is taken


def test_window_ends_before_the_damage(to_file: Any) -> None:
    """What lies after the window is not even read."""
    content = to_file(np.random.default_rng(0).uniform(-0.1, 0.1, 480_000), form="FLAC")
    assert len(decoded_samples(io.BytesIO(content[: len(content) // 2]), 5, 0.0, 1.0)) == 24_000


def test_damage_in_the_middle() -> None:
    """Bytes flipped anywhere give samples or an error of ours, never another exception and never NaN."""
    rng = np.random.default_rng(0)
    heard: set[str] = set()
    for name in ("wav float", "flac", "ogg vorbis", "ogg opus", "mp3", "m4a", "aac", "webm opus", "aiff"):
        whole = FORMATS[name]()
        for _ in range(12):
            content = bytearray(whole)
            for at in rng.integers(0, len(content), 8):
                content[at] = rng.integers(256)
            content = content[: rng.integers(16, len(content) + 1)]
            try:
                samples = decoded_samples(io.BytesIO(bytes(content)), 10)
            except (AudioInvalid, AudioTooLong, UnsupportedFormat):
                continue
            assert np.isfinite(samples).all()
            heard.add(name)
    assert len(heard) > 3, "not all of them were refused"


def test_limiter_keeps_quiet_samples_and_never_clips() -> None:
    levels = np.linspace(-8, 8, 4_001).astype(np.float32)
    limited = limit(levels)
    quiet = np.abs(levels) <= 0.9
    np.testing.assert_array_equal(limited[quiet], levels[quiet])
    assert np.abs(limited).max() <= 1
    assert (np.diff(limited) >= 0).all()


@pytest.mark.parametrize("head", [b"\xff\xfea\0", b"<html>", b"RIFF\0\0\0\0AVI ", b"\0" * 30, b"MThd\0\0\0\6", b"\xff"])
def test_what_is_no_audio(head: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        sniff(head)
