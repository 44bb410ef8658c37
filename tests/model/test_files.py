"""Files that commands and trainings write: whole, or what they were."""

import json
from pathlib import Path

import pytest

from model.files import put_json, whole_file


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    put_json(path, {"steps": 1})

    def fail() -> None:
        with whole_file(path) as part:
            part.write_text('{"steps"')
            assert json.loads(path.read_text()) == {"steps": 1}, "until the end"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_as_json_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    put_json(path, {"clips": []})
    with pytest.raises(TypeError):
        put_json(path, {"clips": object()})
    assert json.loads(path.read_text()) == {"clips": []}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("before")
    real.chmod(0o640)
    link.symlink_to(real)
    with whole_file(link) as part:
        part.write_text("after")
    assert link.is_symlink() and real.read_text() == "after"
    assert real.stat().st_mode & 0o777 == 0o640
