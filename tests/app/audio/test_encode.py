"""Samples to bytes: pieces do not show in what comes out, files are what they say, and little is held back."""

import io
from typing import Any, Literal

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio.encode import encode, encoder, to_pcm, wav_head
from app.audio.formats import FORMATS
from app.audio.mixing import limit
from app.audio.samples import Samples
from tests.support.decoding import decoded_samples


def frame_samples(form: Literal["opus", "mp3"]) -> int:
    codec = FORMATS[form].codec
    assert codec is not None
    return codec.frame_samples


FORMS = ("wav", "pcm", "opus", "mp3")
LENGTHS = (0, 1, 319, 320, 479, 480, 481, 576, 5_000, 24_001)


def noise(samples: int, seed: int = 0) -> Samples:
    return (0.3 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def speechlike(samples: int) -> Samples:
    times = np.arange(samples) / 24_000
    rising = np.sin(2 * np.pi * (200 * times + 150 * times**2)) * (1 + np.sin(2 * np.pi * 3 * times))
    made: Samples = (0.3 * rising).astype(np.float32)
    return made


def streamed(form: Any, samples: Samples, cuts: list[int]) -> bytes:
    one = encoder(form)
    made = one.head + b"".join(one.feed(piece) for piece in np.split(samples, cuts)) + one.finish()
    one.close()
    return made


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    length=st.integers(0, 6_000),
    cuts=st.lists(st.integers(0, 6_000), max_size=12),
    loudness=st.sampled_from([0.0, 0.1, 3.0]),
)
def test_pieces_do_not_show(form: Any, length: int, cuts: list[int], loudness: float) -> None:
    """Any pieces, empty ones and loud ones among them, give the bytes of the whole."""
    samples = noise(length, length) * np.float32(loudness)
    whole = encode(samples, form)
    pieces = streamed(form, samples, sorted(min(cut, length) for cut in cuts))
    if form == "wav":
        assert (whole[:44], pieces[:44]) == (wav_head(2 * length), wav_head(None))
        whole, pieces = whole[44:], pieces[44:]
    assert pieces == whole


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, 3_000), cuts=st.lists(st.integers(0, 3_000), max_size=8), seed=st.integers(0, 99))
def test_the_limiter_sees_no_pieces(length: int, cuts: list[int], seed: int) -> None:
    samples = noise(length, seed) * 5
    pieces = np.split(samples, sorted(min(cut, length) for cut in cuts))
    np.testing.assert_array_equal(np.concatenate([limit(piece) for piece in pieces]), limit(samples))


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("form", ["wav", "flac"])
def test_lossless_files_hold_the_samples(form: Any, length: int) -> None:
    samples = noise(length)
    read, rate = soundfile.read(io.BytesIO(encode(samples, form)), dtype="int16")
    assert rate == 24_000
    np.testing.assert_array_equal(read, to_pcm(samples))
    assert encode(samples, "pcm") == to_pcm(samples).astype("<i2").tobytes()


def test_a_finished_wav_tells_its_sizes() -> None:
    content = encode(noise(1_001), "wav")
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    assert int.from_bytes(content[40:44], "little") == len(content) - 44 == 2_002


def test_a_streamed_wav_is_read_by_what_we_read_with() -> None:
    samples = noise(12_345)
    content = streamed("wav", samples, [5, 700])
    assert content[4:8] == content[40:44] == b"\xff" * 4
    read, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert rate == 24_000
    np.testing.assert_array_equal(read, to_pcm(samples))
    assert len(decoded_samples(io.BytesIO(content), 10)) == len(samples)
    with av.open(io.BytesIO(content), "r") as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == len(samples)


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_opus_is_as_long_as_the_samples(length: int) -> None:
    """To the sample: Ogg's last page tells where the audio ends."""
    read, rate = soundfile.read(io.BytesIO(encode(noise(length), "opus")))
    assert (len(read), rate) == (length, 24_000)


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_mp3_holds_all_of_the_samples(length: int) -> None:
    """And what the format adds: 1105 samples in front, and the rest of the last frame."""
    read, rate = soundfile.read(io.BytesIO(encode(noise(length), "mp3")))
    assert rate == 24_000
    assert length + 1_105 <= len(read) <= length + 1_105 + 2 * frame_samples("mp3")


@pytest.mark.parametrize(("form", "delay"), [("opus", 0), ("mp3", 1_105)])
def test_codecs_keep_the_sound(form: Any, delay: int) -> None:
    """In its place, and with its level."""
    samples = speechlike(48_000)
    read, _ = soundfile.read(io.BytesIO(encode(samples, form)), dtype="float32")
    heard = read[delay : delay + len(samples)]
    error = np.sqrt(np.mean((heard - samples) ** 2) / np.mean(samples**2))
    assert error < 0.15
    assert np.corrcoef(heard, samples)[0, 1] > 0.98


def test_no_sound_at_all_is_a_file_of_no_sound() -> None:
    assert encode(noise(0), "opus")[:4] == b"OggS"
    assert encode(noise(0), "pcm") == b""


@pytest.mark.parametrize("form", FORMS)
def test_same_samples_same_bytes(form: Any) -> None:
    assert encode(noise(9_999), form) == encode(noise(9_999), form)


def readable(form: Any, content: bytes) -> int:
    """Samples of what was fed that a reader has from these bytes, when no more of them came."""
    if form == "opus":  # a frame a page, after two pages of header; the codec's own delay is 6.5 ms
        return max((content.count(b"OggS") - 2) * frame_samples("opus") - 156, 0)
    if form == "mp3":  # 64 kbit/s: as many bytes for each frame
        return max(len(content) // 192 * frame_samples("mp3") - 1_105, 0)
    return (len(content) - len(encoder(form).head)) // 2


@pytest.mark.parametrize(("form", "most"), [("wav", 0), ("pcm", 0), ("opus", 956), ("mp3", 2_193)])
def test_held_back(form: Any, most: int) -> None:
    """The most that was fed and is not yet in the bytes, fed in frames of 1/75 s: 40 ms in Opus, 91 ms in MP3."""
    one, samples = encoder(form), speechlike(48_000)
    content, held = one.head, []
    for start in range(0, len(samples), 320):
        content += one.feed(samples[start : start + 320])
        held.append(start + 320 - readable(form, content))
    one.close()
    assert max(held) == most


@pytest.mark.parametrize("form", ["opus", "mp3"])
def test_an_encoder_that_is_not_finished_can_be_closed(form: Any) -> None:
    for fed in (0, 100, 5_000):
        one = encoder(form)
        one.feed(noise(fed))
        one.close()
        one.close()
    one = encoder(form)
    assert one.feed(noise(5_000)) + one.finish(), "what was closed early takes nothing from the next"
