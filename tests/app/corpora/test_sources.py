"""What names clips: every kind of source gives the clips that it names, in order, and faults where it names none."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from app.corpora.clips import Clip
from app.corpora.sources import KINDS, clips_of, count_of, is_corpus, places, read_folder
from app.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"audio of {name}".encode())


def content(clip: Clip) -> bytes:
    with clip.opened() as file:
        return file.read()


def ids(*paths: Path) -> list[str]:
    return [clip.id for clip in clips_of(list(places(paths)))]


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") if path.suffix in (".gz", ".tgz") else tarfile.open(path, "w:") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_folder_has_its_sound_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(
        tmp_path, "c/b.WAV", "c/a.flac", "c/notes.txt", "c/.hidden.wav", "c/.cache/x.wav", "c/sub/z.ogg", "c/sub/a.mp3"
    )
    monkeypatch.chdir(tmp_path)
    assert ids(Path("c")) == ["c/a.flac", "c/b.WAV", "c/sub/a.mp3", "c/sub/z.ogg"]
    assert count_of([Path("c")]) == 4
    assert [content(clip) for clip in clips_of([Path("c/sub")])] == [b"audio of c/sub/a.mp3", b"audio of c/sub/z.ogg"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_folder(tmp_path / "gone"))


def test_a_pattern_stands_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "c/2.wav", "c/1.wav", "c/deep/3.wav", "[odd].wav")
    monkeypatch.chdir(tmp_path)
    assert ids(Path("c/*.wav")) == ["c/1.wav", "c/2.wav"]
    assert ids(Path("c/**")) == ["c/1.wav", "c/2.wav", "c/deep/3.wav"]
    assert ids(Path("c/*")) == ["c/1.wav", "c/2.wav", "c/deep/3.wav"], "as where a shell puts the names in its place"
    assert ids(Path("[odd].wav")) == ["[odd].wav"], "a file of that very name"
    with pytest.raises(UserError, match=r"c/\*\.mp3: no file is named like that"):
        list(places([Path("c/*.mp3")]))
    with pytest.raises(UserError, match="nowhere does not exist"):
        list(places([Path("nowhere")]))


def test_wav_scp(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "with space.wav")
    scp = tmp_path / "wav.scp"
    scp.write_text("u1 a.wav\n\nu2\twith space.wav\nu3 sox x.wav -t wav - |\nu4\n")
    clips = list(clips_of([scp]))
    assert [clip.id for clip in clips] == ["u1", "u2", "u3", "u4"] and count_of([scp]) == 4
    assert [content(clip) for clip in clips[:2]] == [b"audio of a.wav", b"audio of with space.wav"]
    assert "commands are not run" in (clips[2].fault or "") and "no path" in (clips[3].fault or "")


def test_jsonl_has_parts_of_files_and_faults(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    lines: list[object] = [
        {"audio_filepath": "a.wav", "duration": 3.0, "text": "…"},
        {"audio_filepath": "a.wav", "offset": 1.5, "duration": 0.5},
        {"id": 7, "path": "a.wav"},
        {"text": "no file"},
        {"path": "a.wav", "offset": "soon"},
        {"path": "a.wav", "offset": 1, "duration": 0},
        [1],
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines) + "a.wav\n")
    clips = list(clips_of([manifest]))
    assert [clip.id for clip in clips[:3]] == ["a.wav", "a.wav@1.5-2", "7"]
    assert [(clip.start_seconds, clip.end_seconds) for clip in clips[:3]] == [(0, None), (1.5, 2.0), (0, None)]
    faults = ["names no file", "could not convert", "a duration of 0 seconds", "holds no object", "is no JSON"]
    for number, (clip, fault) in enumerate(zip(clips[3:], faults, strict=True), 4):
        assert clip.id == f"m.jsonl:{number}" and fault in (clip.fault or ""), clip


@pytest.mark.parametrize(("name", "mark"), [("m.csv", ","), ("m.tsv", "\t")])
def test_tables(tmp_path: Path, name: str, mark: str) -> None:
    touch(tmp_path, "a, b.wav")
    rows = [["client", "file_name", "utt_id"], ["x", '"a, b.wav"', "u1"], ["y", '"a, b.wav"', ""], ["z", "", "u3"]]
    (tmp_path / name).write_text("\r\n".join(mark.join(row) for row in rows))
    clips = list(clips_of([tmp_path / name]))
    assert [clip.id for clip in clips] == ["u1", "a, b.wav", "u3"]
    assert content(clips[0]) == b"audio of a, b.wav" and "names no file" in (clips[2].fault or "")
    (tmp_path / name).write_text("one\ttwo,three\n1,2\n")
    with pytest.raises(UserError, match="the header names no column of files"):
        list(clips_of([tmp_path / name]))


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz"])
def test_tars(tmp_path: Path, name: str) -> None:
    members = {"x/0.wav": b"zero" * 200, "x/0.json": b"{}", "x/1.flac": b"one", "x/.2.wav": b"hidden"}
    path = shard(tmp_path / name, members)
    clips = list(clips_of([path]))
    assert [clip.id for clip in clips] == [f"{path}/x/0.wav", f"{path}/x/1.flac"]
    assert [content(clip) for clip in clips] == [b"zero" * 200, b"one"]
    assert count_of([path]) == (2 if name == "s.tar" else None)
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match="is no tar"):
        list(clips_of([path]))


@pytest.mark.parametrize("what", ["paths", "objects", "tar", "tar.gz"])
def test_standard_input(tmp_path: Path, what: str) -> None:
    touch(tmp_path, "a.wav", "b c.wav")
    members = {name: f"audio of {name}".encode() for name in ("a.wav", "b c.wav")}
    given = {
        "paths": b"a.wav\nb c.wav\n",
        "objects": b'{"path": "a.wav"}\n{"path": "b c.wav"}\n',
        "tar": shard(tmp_path / "s.tar", members).read_bytes(),
        "tar.gz": shard(tmp_path / "s.tgz", members).read_bytes(),
    }[what]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path; from app.corpora.sources import clips_of\n"
        "for clip in clips_of([Path('-')]):\n"
        "    with clip.opened() as file: print(clip.id, file.read().decode(), sep='|')"
    )
    made = subprocess.run([sys.executable, "-c", code], input=given, cwd=tmp_path, capture_output=True, check=False)
    prefix = "stdin/" if what.startswith("tar") else ""
    assert made.stdout.decode().splitlines() == [f"{prefix}{name}|audio of {name}" for name in ("a.wav", "b c.wav")]


def test_what_is_a_corpus(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.txt")
    assert not is_corpus([tmp_path / "a.wav", tmp_path / "a.txt", tmp_path / "missing.wav"])
    assert is_corpus([tmp_path]) and is_corpus([tmp_path / "*.wav"]) and is_corpus([Path("-")])
    for kind in KINDS:
        for suffix in kind.suffixes:
            assert is_corpus([tmp_path / f"name{suffix}"]), suffix
