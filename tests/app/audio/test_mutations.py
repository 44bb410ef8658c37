"""No damaged file ends the process that decodes it: it gives finite samples, or an error that has a code."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.mutations import LIBAV, LIBSNDFILE, mutated, sources

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits its memory as decoders do, on Unix alone")
TOLD = {"heard", "unsupported_format", "audio_invalid", "audio_too_short", "audio_too_long", "timeout"}


def decoded(first: int, count: int) -> Counter[str]:
    """So many files by a process of their own; what became of them."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.support.mutations", str(first), str(count)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=3_000
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == count, f"behind {lines[-1:]}: {done.returncode} {done.stderr[-2000:]}"
    return Counter(line.split()[-1] for line in lines)


def test_files_are_of_every_format_and_each_a_function_of_its_number() -> None:
    names = {mutated(index)[0] for index in range(300)}
    assert names == {name for name, _ in sources()} and len(names) == len(LIBSNDFILE) + len(LIBAV)
    assert len({mutated(index)[1] for index in range(100)}) == 100
    assert mutated(7) == mutated(7)


@pytest.mark.parametrize(("first", "count"), [(0, 400), pytest.param(400, 6_000, marks=pytest.mark.slow)])
def test_no_file_is_fatal(first: int, count: int) -> None:
    found = decoded(first, count)
    assert set(found) <= TOLD
    assert found["heard"] > 0.3 * count, "most damage is small"
    assert count - found["heard"] > 0.1 * count, "some is not"
