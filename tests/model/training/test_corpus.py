"""The corpus: what is read, what is left out and said so, and a split that cuts through no speaker and no piece."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.constants import SAMPLE_RATE_HZ
from model.training.corpus import (
    MIDI_RMS,
    SOUND_FONT,
    Clip,
    Corpus,
    DataError,
    build_corpus,
    find_files,
    group_of,
    is_valid_group,
    read_audio,
    render_midi,
)


def tone(seconds: float, rate: int = SAMPLE_RATE_HZ, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_midi(path: Path, notes: bytes = bytes([60, 64, 67])) -> None:
    """Format 0, one track: each note for a beat (0.5 s), written by hand."""
    track = b"".join(b"\x00\x90" + bytes([note, 100]) + b"\x60\x80" + bytes([note, 0]) for note in notes)
    track += b"\x00\xff\x2f\x00"
    path.write_bytes(b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60MTrk" + len(track).to_bytes(4, "big") + track)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """60 speakers of two files each, in LibriSpeech's layout."""
    for speaker in range(60):
        folder = tmp_path / "audio" / str(speaker) / "7"
        folder.mkdir(parents=True)
        for number in range(2):
            sound = tone(0.2, hertz=200 + 10 * speaker + number)
            soundfile.write(folder / f"{speaker}-7-{number:04}.flac", sound, SAMPLE_RATE_HZ)
    return tmp_path / "audio"


def test_flat_file_holds_every_clip(library: Path, tmp_path: Path) -> None:
    corpus = build_corpus([library], tmp_path / "corpus")
    assert len(corpus.clips) == 120
    assert sum(clip.length for clip in corpus.clips) == len(corpus.samples) == 120 * 4800
    for clip in corpus.clips[::17]:
        wanted, _ = soundfile.read(clip.path, dtype="float32")
        np.testing.assert_allclose(corpus.read(clip), wanted, rtol=0, atol=1.01 / 32768)
        np.testing.assert_array_equal(corpus.read(clip, 100, 50), corpus.read(clip)[100:150])
        assert len(corpus.read(clip, 4700, 500)) == 100  # never into the next clip


def test_splits_share_no_group(library: Path, tmp_path: Path) -> None:
    corpus = build_corpus([library], tmp_path / "corpus")
    train, valid = corpus.split("train"), corpus.split("valid")
    assert train and valid
    assert {clip.path for clip in train} | {clip.path for clip in valid} == {clip.path for clip in corpus.clips}
    assert not {clip.group for clip in train} & {clip.group for clip in valid}
    assert not {Path(clip.path).name.split("-")[0] for clip in train} & {
        Path(clip.path).name.split("-")[0] for clip in valid
    }
    assert corpus.hours("train") + corpus.hours("valid") == pytest.approx(120 * 0.2 / 3600)
    assert corpus.split("train", "music") == []


def test_split_does_not_depend_on_where_the_corpus_lies(library: Path, tmp_path: Path) -> None:
    here = build_corpus([library], tmp_path / "corpus")
    moved = library.rename(tmp_path / "elsewhere")
    there = build_corpus([moved], tmp_path / "corpus2")
    names = [{Path(clip.path).name for clip in corpus.split("valid")} for corpus in (here, there)]
    assert names[0] == names[1]


def test_a_large_group_is_never_for_validation() -> None:
    small = [group for group in map(str, range(1000)) if is_valid_group(group, 0.001)]
    assert 15 < len(small) < 75  # 4 percent
    assert not any(is_valid_group(group, 0.2) for group in small)


@pytest.mark.parametrize(
    ("path", "kind", "group"),
    [
        ("LibriSpeech/test/61/70968/61-70968-0001.flac", "speech", "61"),
        ("speech/librispeech/103-1240-0000.opus", "speech", "librispeech/103"),
        ("voices/anna/one.wav", "speech", "anna"),
        ("voices/anna/take-one.wav", "speech", "anna"),
        ("pieces/sonata.mid", "music", "sonata"),
    ],
)
def test_groups(path: str, kind: str, group: str) -> None:
    assert group_of(Path(path), kind) == group


def test_made_once(library: Path, tmp_path: Path) -> None:
    build_corpus([library], tmp_path / "corpus")
    shutil.rmtree(library / "3")
    assert len(build_corpus([library], tmp_path / "corpus").clips) == 120  # opened, not made again
    assert len(build_corpus([library / "4"], tmp_path / "corpus").clips) == 2  # other folders: made anew


def test_what_was_cut_off_is_not_opened_as_what_was_there(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of other folders is begun in its place, and killed: the samples are neither's."""
    before = build_corpus([library], tmp_path / "corpus")
    whole = before.samples[:].copy()

    def cut(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("model.training.corpus._decoded", cut)
        with pytest.raises(KeyboardInterrupt):
            build_corpus([library / "4"], tmp_path / "corpus")
    after = build_corpus([library], tmp_path / "corpus")
    assert len(after.clips) == 120 and np.array_equal(after.samples[:], whole)


def test_unreadable_files_are_listed(library: Path, tmp_path: Path) -> None:
    (library / "broken.wav").write_bytes(b"RIFF, but no more")
    soundfile.write(library / "blink.wav", tone(0.01), SAMPLE_RATE_HZ)
    (library / "notes.txt").write_text("no audio")
    corpus = build_corpus([library], tmp_path / "corpus")
    assert len(corpus.clips) == 120
    skipped = json.loads((tmp_path / "corpus" / "index.json").read_text())["skipped"]
    assert len(skipped) == 2
    assert any("broken.wav" in line for line in skipped)
    assert any("blink.wav" in line and "shorter than a frame" in line for line in skipped)


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="no audio"):
        build_corpus([tmp_path / "in"], tmp_path / "out")
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"none of 1 files.*broken"):
        build_corpus([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(DataError, match="no corpus"):
        Corpus(tmp_path / "nothing")


def test_find_files_takes_files_and_folders(library: Path) -> None:
    one = library / "1" / "7" / "1-7-0000.flac"
    assert find_files([one, library / "2"]) == sorted([one, *(library / "2").rglob("*.flac")])


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_24_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    sound = np.stack([tone(1.0, rate)] * channels, axis=1)
    soundfile.write(tmp_path / "x.wav", sound, rate, subtype="FLOAT")
    samples = read_audio(tmp_path / "x.wav")
    assert samples.dtype == np.float32 and abs(len(samples) - SAMPLE_RATE_HZ) <= 1
    middle = slice(6000, 18000)  # resampling rings at the ends
    np.testing.assert_allclose(samples[middle], tone(1.0)[middle], rtol=0, atol=2e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.stack([tone(0.1), -tone(0.1)], 1), SAMPLE_RATE_HZ, subtype="FLOAT")
    assert not read_audio(tmp_path / "x.wav").any()


def test_loud_and_broken_samples_stay_in_range(tmp_path: Path) -> None:
    wild = tone(0.2) * 5
    wild[100] = np.nan
    soundfile.write(tmp_path / "x.wav", wild, SAMPLE_RATE_HZ, subtype="FLOAT")
    corpus = build_corpus([tmp_path / "x.wav"], tmp_path / "corpus")
    samples = corpus.read(corpus.clips[0])
    assert samples[100] == 0.0 and samples.max() == pytest.approx(32767 / 32768) and samples.min() == -1.0
    assert corpus.read(corpus.clips[0])[14] > 0.9  # no wrap-around


def test_music_on_request(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(0.1), SAMPLE_RATE_HZ)
    corpus = build_corpus([tmp_path / "x.wav"], tmp_path / "corpus", music=True)
    assert corpus.clips == [Clip(str(tmp_path / "x.wav"), "x", "music", 0, 2400)]


needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUND_FONT.exists(),
    reason="needs FluidSynth: apt-get install fluidsynth fluid-soundfont-gm",
)


@pytest.mark.system
@needs_fluidsynth
def test_midi_is_rendered_at_the_level_of_speech(tmp_path: Path) -> None:
    write_midi(tmp_path / "chord.mid")
    samples = render_midi(tmp_path / "chord.mid")
    assert samples.dtype == np.float32 and 1.5 * SAMPLE_RATE_HZ <= len(samples) < 20 * SAMPLE_RATE_HZ
    assert np.abs(samples).max() <= 0.99
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(MIDI_RMS, rel=0.05)
    spectrum = np.abs(np.fft.rfft(samples[: SAMPLE_RATE_HZ // 2]))
    peak_hertz = spectrum.argmax() * 2
    assert min(abs(peak_hertz - 261.6 * overtone) for overtone in (1, 2, 3)) < 8  # middle C comes first


@pytest.mark.system
@needs_fluidsynth
def test_midi_in_a_corpus_is_music(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_midi(tmp_path / "in" / "chord.mid")
    write_midi(tmp_path / "in" / "silent.mid", b"")
    soundfile.write(tmp_path / "in" / "x.wav", tone(0.1), SAMPLE_RATE_HZ)
    corpus = build_corpus([tmp_path / "in"], tmp_path / "corpus")
    assert [(clip.kind, clip.group) for clip in corpus.clips] == [("music", "chord"), ("speech", "in")]
    skipped = json.loads((tmp_path / "corpus" / "index.json").read_text())["skipped"]
    assert len(skipped) == 1 and "silent.mid" in skipped[0]


def test_midi_without_fluidsynth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_midi(tmp_path / "chord.mid")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="fluid-soundfont-gm"):
        render_midi(tmp_path / "chord.mid")
