"""Files that were joined, cut, damaged or written carelessly: what FFmpeg hears, we hear, and a loss is told.

FFmpeg is asked by itself, through PyAV, as the second opinion: packet after packet, those that fail left out.
"""

import base64
import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from app.audio.character import CODE
from app.audio.decode import decode
from app.errors import AudioTooLong, DeadlinePassed, UnsupportedFormat

TAG = b"ID3\x04\x00\x00\x00\x00\x02\x01" + bytes(257)  # 2 * 128 + 1 bytes
rng = np.random.default_rng(0)
JUNK = rng.bytes(300)


def tone(hertz: float, seconds: float = 2.0, rate: int = 24_000, channels: int = 1) -> np.ndarray:
    """(N, channels), with a little noise, so that no codec makes nothing of it."""
    times = np.arange(round(seconds * rate)) / rate
    samples = 0.4 * np.sin(2 * np.pi * hertz * times) + 0.01 * np.random.default_rng(1).standard_normal(len(times))
    return np.repeat(samples[:, None], channels, axis=1).astype(np.float32)


def by_soundfile(form: str, subtype: str | None, hertz: float, rate: int = 24_000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(hertz, rate=rate, channels=channels), rate, subtype, format=form)
    return out.getvalue()


def by_av(
    form: str, codec: str, hertz: float, rate: int = 24_000, channels: int = 1, sample_format: str = "fltp",
    **options: str,
) -> bytes:  # fmt: skip
    layout = "mono" if channels == 1 else "stereo"
    out = io.BytesIO()
    with av.open(out, "w", format=form, container_options=options) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        if sample_format == "s16":
            stream.format = "s16"
        container.start_encoding()
        size = stream.codec_context.frame_size or 1024
        samples = tone(hertz, rate=rate, channels=channels)
        if sample_format == "s16":
            samples = np.round(samples * 32767).astype(np.int16)
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            part = part.T if sample_format == "fltp" else part.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=sample_format, layout=layout)
            frame.sample_rate, frame.pts = rate, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return out.getvalue()


def mp3(hertz: float, rate: int = 24_000, channels: int = 1, **options: str) -> bytes:
    return by_av("mp3", "libmp3lame", hertz, rate, channels, **options)


def bare_mp3(hertz: float, rate: int = 24_000, channels: int = 1) -> bytes:
    return mp3(hertz, rate, channels, write_xing="0", id3v2_version="0")


def aac(hertz: float, rate: int = 24_000, channels: int = 1) -> bytes:
    return by_av("adts", "aac", hertz, rate, channels)


def opus(hertz: float, channels: int = 1) -> bytes:
    return by_soundfile("OGG", "OPUS", hertz, channels=channels)


def vorbis(hertz: float, rate: int = 24_000, channels: int = 1) -> bytes:
    return by_soundfile("OGG", "VORBIS", hertz, rate, channels)


def ogg_flac(hertz: float, rate: int = 24_000, channels: int = 1) -> bytes:
    return by_av("ogg", "flac", hertz, rate, channels, "s16")


def flac(hertz: float, rate: int = 24_000, channels: int = 1) -> bytes:
    return by_soundfile("FLAC", None, hertz, rate, channels)


def wav(subtype: str = "PCM_16", form: str = "WAV") -> bytes:
    return by_soundfile(form, subtype, 440)


def of_unknown_length(content: bytes) -> bytes:
    """A FLAC from a pipe."""
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]


def ffmpeg_seconds(content: bytes, form: str) -> float:
    """The second opinion."""
    seconds = 0.0
    with av.open(io.BytesIO(content), "r", format=form) as container:
        for packet in container.demux(container.streams.audio[0]):
            try:
                seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
            except av.FFmpegError:
                continue
    return seconds


def heard(content: bytes, most: float = 60.0) -> tuple[np.ndarray, list[str]]:
    """The samples, and what is told of their reading: that the signals here are tones is true, and told of some."""
    found = decode(io.BytesIO(content), most)
    return found.samples, [warning.code for warning in found.warnings if warning.code != CODE]


def pitch(samples: np.ndarray) -> float:
    """Of a second of audio."""
    return float(np.abs(np.fft.rfft(samples[:24_000] * np.hanning(24_000))).argmax())


JOINED: dict[str, tuple[str, Callable[[], bytes], Callable[[], bytes]]] = {
    "mp3 with Xing": ("mp3", lambda: mp3(440), lambda: mp3(880)),
    "mp3 without": ("mp3", lambda: bare_mp3(440), lambda: bare_mp3(880)),
    "mp3, other rate": ("mp3", lambda: bare_mp3(440), lambda: bare_mp3(880, 44_100)),
    "mp3, other channels": ("mp3", lambda: mp3(440, 44_100, 2), lambda: mp3(880, 16_000)),
    "mp3, tags between": ("mp3", lambda: mp3(440) + b"TAG" + b"x" * 125, lambda: TAG + mp3(880)),
    "aac": ("aac", lambda: aac(440), lambda: aac(880)),
    "aac, other rate and channels": ("aac", lambda: aac(440), lambda: aac(880, 44_100, 2)),
    "aac, tag between": ("aac", lambda: aac(440), lambda: TAG + aac(880)),
    "opus": ("ogg", lambda: opus(440), lambda: opus(880)),
    "opus, other channels": ("ogg", lambda: opus(440), lambda: opus(880, 2)),
    "vorbis": ("ogg", lambda: vorbis(440), lambda: vorbis(880)),
    "vorbis, other rate and channels": ("ogg", lambda: vorbis(440), lambda: vorbis(880, 44_100, 2)),
    "ogg flac": ("ogg", lambda: ogg_flac(440), lambda: ogg_flac(880)),
    "ogg flac, other rate": ("ogg", lambda: ogg_flac(440), lambda: ogg_flac(880, 44_100, 2)),
    "opus, then vorbis": ("ogg", lambda: opus(440), lambda: vorbis(880, 44_100)),
    "flac": ("flac", lambda: flac(440), lambda: flac(880)),
    "flac, other rate": ("flac", lambda: flac(440), lambda: flac(880, 44_100, 2)),
    "flac of unknown length": ("flac", lambda: of_unknown_length(flac(440)), lambda: TAG + flac(880)),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files(name: str) -> None:
    """The second part is there, at its own speed, behind the first; and nothing is said to be lost."""
    form, first, second = JOINED[name]
    samples, warnings = heard(first() + second())
    apart = ffmpeg_seconds(first(), form), ffmpeg_seconds(second(), form)
    assert len(samples) / 24_000 == pytest.approx(sum(apart), abs=0.1)  # the second MP3 keeps its encoder's delay
    assert pitch(samples[6_000:]) == 440
    assert pitch(samples[-36_000:]) == 880
    assert warnings == []


def test_three_links_and_no_more_than_the_limit() -> None:
    """Each link is a file, and all of them are one clip."""
    assert heard(opus(440) * 3)[0].shape == (144_000,)
    with pytest.raises(AudioTooLong):
        heard(opus(440) * 30, 10.0)


def test_a_stream_beside_the_audio_is_no_link() -> None:
    """Pages that begin streams and stand together belong to one file, as in Ogg with video."""
    content = opus(440)
    page = 28 + content[27]  # the first: one segment
    other = bytearray(content[:page])
    other[14:18], other[28:36] = b"\1\2\3\4", b"fishead\0"  # a skeleton, of another number; its sum is not looked at
    samples, _ = heard(content[:page] + bytes(other) + content[page:])
    assert len(samples) == 48_000


def holed(content: bytes, size: int, at: float = 0.5) -> bytes:
    """Zeros in the middle."""
    start = int(len(content) * at)
    return content[:start] + bytes(size) + content[start + size :]


def m4a() -> bytes:
    return by_av("ipod", "aac", 440)


def fragments() -> bytes:
    """MP4 as browsers record it: what is where stands in front of each half a second, and nowhere else."""
    return by_av("mp4", "aac", 440, movflags="frag_keyframe+empty_moov", frag_duration="500000")


def lost_fragment() -> bytes:
    """The head of the third is overwritten, and with it the way to all that follows."""
    content = fragments()
    at = [found.start() - 4 for found in re.finditer(b"moof", content)][2]
    return content[:at] + JUNK[:40] + content[at + 40 :]


# Two seconds of a tone as Speex, half a second a page, by FFmpeg's command: PyAV reads it and cannot write it.
SPEEX = (
    "eNrzT08PZmBiQAOXHqzbzRgQXJCaWqGgoGCoZ6RniKaCEYgDgNhBHsJngYqlcTAwLEBSgwz8QXZhmHLzrE41ozobSG9abkFqOkhMFIhT85LzU1"
    "KLbH0Sy5IVcjKTikGugRhRwY8wAuT2Sbf8bSTZcAGOkA62Z/xAkj0BSHYWDw4S4hMJeYRPmIFYYwL/C3w+GSyux/TJDj2ET0CJgSXjuvGQ9AlL"
    "hB3CJ6xAXHRU4NhQ8wkAOaDb5g=="
)


def paged() -> bytes:
    """Ogg whose last page but one is damaged, and told of by nothing but the time of the last."""
    content = zlib.decompress(base64.b64decode(SPEEX))
    at = [found.start() for found in re.finditer(b"OggS", content)][-2] + 60
    return content[:at] + JUNK[:20] + content[at + 20 :]


def mp3_in_wav() -> bytes:
    content = by_av("wav", "libmp3lame", 440, 44_100)
    return content[:14_000] + 2 * JUNK + content[14_600:]


def g722(missing: int = 0) -> bytes:
    content = by_av("wav", "g722", 440, 16_000, sample_format="s16")
    return content[: len(content) - missing]


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "mp3, a few bytes": ("mp3", lambda: holed(mp3(440), 200)),
    "mp3, many bytes": ("mp3", lambda: holed(mp3(440), 2_000)),
    "mp3, noise": ("mp3", lambda: mp3(440)[:4_000] + JUNK + mp3(440)[4_300:]),
    "mp3, cut out": ("mp3", lambda: mp3(440)[:3_000] + mp3(440)[4_000:]),
    "aac, a few bytes": ("aac", lambda: holed(aac(440), 200)),
    "aac, many bytes": ("aac", lambda: holed(aac(440), 2_000)),
    "aac, end missing": ("aac", lambda: aac(440)[:-100]),
    "m4a": ("mov", lambda: holed(m4a(), 200, 0.4)),
    "opus": ("ogg", lambda: holed(opus(440) + opus(880), 100, 0.25)),
    "vorbis": ("ogg", lambda: holed(vorbis(440), 100)),
    "flac": ("flac", lambda: holed(flac(440), 300)),
    "flac, end missing": ("flac", lambda: flac(440)[:-30_000]),
    "webm, end missing": ("matroska", lambda: by_av("webm", "libopus", 440, 48_000)[:-8_000]),
    "wav, end missing": ("wav", lambda: wav()[:-30_000]),
    "aiff, end missing": ("aiff", lambda: wav(form="AIFF")[:-30_000]),
    "au, end missing": ("au", lambda: wav(form="AU")[:-30_000]),
    "caf, end missing": ("caf", lambda: wav(form="CAF")[:-30_000]),
    "w64, end missing": ("w64", lambda: wav(form="W64")[:-30_000]),
    "mp4, a fragment": ("mov", lost_fragment),
    "speex, a page": ("ogg", paged),
    "mp3 in wav": ("wav", mp3_in_wav),
    "g722 in wav, end missing": ("wav", lambda: g722(5_000)),
}


@pytest.mark.parametrize("make", [fragments, g722, lambda: by_av("wav", "libmp3lame", 440)])
def test_what_is_whole_is_no_damage(make: Callable[[], bytes]) -> None:
    samples, warnings = heard(make())
    assert len(samples) / 24_000 == pytest.approx(2.0, abs=0.1)
    assert warnings == []


def test_nothing_is_heard_behind_the_samples_of_a_wav() -> None:
    """libsndfile does not read this one; FFmpeg believes the size of its samples, unless it was never written."""
    good, _ = heard(g722())
    samples, _ = heard(g722() + bytes(4_000))
    np.testing.assert_array_equal(samples, good)
    unknown, _ = heard(sized(g722(), 0xFFFF_FFFF))
    np.testing.assert_array_equal(unknown, good)


@pytest.mark.parametrize("name", DAMAGED)
def test_damage(name: str) -> None:
    """All that FFmpeg hears is there, behind the damage too, and the loss is told."""
    form, make = DAMAGED[name]
    samples, warnings = heard(make())
    expected = ffmpeg_seconds(make(), form)
    assert expected > 0.5
    assert len(samples) / 24_000 == pytest.approx(expected, abs=0.03)
    assert warnings == ["audio_lost"]


@pytest.mark.parametrize("name", ["mp3", "ogg"])
def test_an_end_that_is_missing_without_an_error(name: str) -> None:
    """Between two frames, or within a page: what is left decodes, and Xing's tag or the page tells of the rest."""
    content = mp3(440)[:5_000] if name == "mp3" else vorbis(440)[:-6_000]
    samples, warnings = heard(content)
    assert len(samples) / 24_000 == pytest.approx(ffmpeg_seconds(content, name), abs=0.03)
    assert warnings == ["audio_lost"]


def test_a_damaged_flac_keeps_what_came_before() -> None:
    """Sample for sample, though another decoder goes on behind the damage."""
    whole = np.concatenate([tone(440, 6.0)[:, 0]])
    out = io.BytesIO()
    soundfile.write(out, whole, 24_000, format="FLAC")
    good, _ = heard(out.getvalue())
    bad, warnings = heard(holed(out.getvalue(), 300, 0.8))
    np.testing.assert_array_equal(bad[:110_000], good[:110_000])
    np.testing.assert_array_equal(bad[-20_000:], good[-20_000:])
    assert warnings == ["audio_lost"]


def test_one_changed_bit_of_flac_is_told() -> None:
    """FFmpeg hears noise there, and does not notice."""
    content = bytearray(flac(440))
    content[len(content) // 2] ^= 0x55
    samples, warnings = heard(bytes(content))
    assert (len(samples), warnings) == (48_000, ["audio_lost"])


def test_a_loss_is_measured() -> None:
    """Within a frame or two: 300 of the frames' bytes are 0.3 s at 8 kbit/s."""
    found = decode(io.BytesIO(wav()[:-24_000]), 60)
    assert found.warnings[0].message == "about 0.50 s of the audio is lost: the file is damaged or incomplete"
    content = holed(bare_mp3(440), 2_000)
    lost = ffmpeg_seconds(bare_mp3(440), "mp3") - ffmpeg_seconds(content, "mp3")
    told = float(decode(io.BytesIO(content), 60).warnings[0].message.split()[1])
    assert told == pytest.approx(lost, abs=0.06)


def test_damage_behind_the_window_is_not_told() -> None:
    content = holed(vorbis(440) * 3, 100, 0.9)
    assert decode(io.BytesIO(content), 1, 0.0, 0.5).warnings == ()


def sized(content: bytes, size: int) -> bytes:
    at = content.index(b"data") + 4
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_wav_whose_size_was_never_written(subtype: str, size: int) -> None:
    good, _ = heard(wav(subtype))
    samples, warnings = heard(sized(wav(subtype), size))
    np.testing.assert_allclose(samples, good, atol=1e-6)
    assert warnings == []


def test_rf64_caf_and_au_whose_size_was_never_written() -> None:
    rf64 = bytearray(wav(form="RF64"))
    at = rf64.index(b"ds64")
    rf64[at + 8 : at + 32] = bytes(24)
    caf = bytearray(wav(form="CAF"))
    at = caf.rindex(b"data")
    caf[at + 4 : at + 12] = b"\xff" * 8
    au = bytearray(wav(form="AU"))
    au[8:12] = bytes(4)
    for content in (rf64, caf, au):
        assert len(heard(bytes(content))[0]) == 48_000


FRONTS: dict[str, bytes] = {
    "a tag": TAG,
    "two tags": TAG + TAG,
    "zeros": bytes(417),
    "many zeros": bytes(100_000),
    "junk": JUNK[:200],
    "much junk": np.random.default_rng(2).bytes(100_000),
    "words": b"HTTP/1.0 200 OK\r\ncontent-type: audio/mpeg\r\n\r\n",
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("form", ["mp3", "aac", "flac"])
def test_what_stands_in_front(form: str, front: str) -> None:
    content = {"mp3": bare_mp3, "aac": aac, "flac": flac}[form](440)
    if form == "flac" and "tag" not in front:
        with pytest.raises(UnsupportedFormat):
            heard(FRONTS[front] + content)
        return
    samples, warnings = heard(FRONTS[front] + content)
    expected = ffmpeg_seconds(FRONTS[front] + content, form)
    assert expected > 1.8
    assert len(samples) / 24_000 == pytest.approx(expected, abs=0.08)
    assert pitch(samples[6_000:]) == 440
    assert warnings == ([] if expected > 2.0 else ["audio_lost"])  # it takes some junk for ADTS


@pytest.mark.parametrize("seed", range(8))
def test_noise_is_no_mpeg(seed: int) -> None:
    with pytest.raises(UnsupportedFormat):
        heard(b"\0" + np.random.default_rng(seed).bytes(500_000))


@pytest.mark.parametrize("count", [1, 40, 9_999], ids=["one", "too few", "too many"])
def test_xing_that_counts_wrongly(count: int) -> None:
    content = bytearray(mp3(440))
    at = max(content.find(b"Xing"), content.find(b"Info"))
    content[at + 8 : at + 12] = struct.pack(">I", count)
    samples, warnings = heard(bytes(content))
    assert len(samples) / 24_000 == pytest.approx(2.0, abs=0.1)
    assert warnings == []


def frames_that_do_not_decode() -> bytes:
    """ADTS heads of 24 kHz, mono, each with a byte of nonsense."""
    return aac(440) + (bytes.fromhex("fff15840011ffc") + b"\xff") * 200_000


@pytest.mark.parametrize("kind", ["links", "packets"])
def test_what_holds_no_samples_ends_in_time(kind: str) -> None:
    """The clock is looked at although nothing is heard."""
    heads = opus(440)[: opus(440).index(b"OggS", 100)]  # two pages, and no sound behind them
    content = opus(440) + heads * 5_000 if kind == "links" else frames_that_do_not_decode()
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    with pytest.raises(DeadlinePassed):
        decode(io.BytesIO(content), 60, stop=stop)


def stereo(left: np.ndarray, right: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.stack([left, right], axis=1), 24_000, format="FLAC")
    return out.getvalue()


def test_channels_that_cancel_are_told() -> None:
    one, other = tone(440)[:, 0], tone(660)[:, 0]
    assert heard(stereo(one, -one))[1] == ["phase_inverted"]
    assert heard(stereo(one, -0.95 * one))[1] == ["phase_inverted"]
    assert heard(stereo(one, other))[1] == heard(stereo(one, 0 * one))[1] == heard(stereo(one, one))[1] == []


def test_silence_is_told() -> None:
    quiet = np.zeros(24_000, np.float32)
    assert heard(stereo(quiet, quiet))[1] == ["silent_clip"]
    quiet[100] = 0.001
    assert heard(stereo(quiet, quiet))[1] == []
