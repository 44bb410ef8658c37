"""What is kept on disk belongs to the sources that it was made of."""

from pathlib import Path

from model.inference.numba_backend.jit import EDITION, edition
from model.inference.numba_backend.lm_step import step


def test_editions(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("step.py", "micro.py", "mel.py")]
    for path in paths:
        path.write_text("x = 1\n")
    known = {edition(paths)}
    assert known == {edition(reversed(paths))}
    for path in paths[1:]:  # what `step` calls, or takes a constant from
        path.write_text("x = 2\n")
        known.add(edition(paths))
    assert len(known) == 3


def test_the_edition_is_part_of_what_numba_looks_for() -> None:
    dispatcher: object = step
    assert EDITION in dispatcher._cache.filename_base  # type: ignore[attr-defined]
