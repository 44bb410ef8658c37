"""docs/codec.md holds what the scripts measured."""

import subprocess
import sys

from benchmarks.codec_tables import PAGE, PARTS, rewritten
from benchmarks.common import RESULTS, ROOT


def test_tables_are_made_of_the_results() -> None:
    command = [sys.executable, "-m", "benchmarks.codec_tables", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_result_has_its_place_in_the_page() -> None:
    text = PAGE.read_text()
    for name in PARTS:
        assert (f"<!-- {name}:begin -->" in text) == (RESULTS / f"{name}.json").exists(), name


def test_what_stands_between_markers_is_made_anew() -> None:
    text = PAGE.read_text()
    for name in PARTS:
        begin = f"<!-- {name}:begin -->\n"
        if begin in text:
            assert rewritten(text.replace(begin, f"{begin}| typed by hand |\n")) == text
