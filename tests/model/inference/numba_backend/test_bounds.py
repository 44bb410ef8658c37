"""A debug run: compiled anew with checks of every index; as it ships, compiled code checks none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoint import random_bundle
from model.inference.numba_backend.backend import NumbaBackend
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from tests.support.signals import enliven, make_speech_like

ROOT = Path(__file__).parents[4]
OPTIONS = (SamplingOptions(seed=1), SamplingOptions(0.8, 20, 1.0, 2), SamplingOptions(1.2, 0, 0.9, 3))
RUN = """
import sys
sys.path.insert(0, "")
from tests.model.inference.numba_backend.test_bounds import step_all_kinds
step_all_kinds()
print("done")
"""
CAUGHT = """
import numpy as np
from model.inference.numba_backend.gemm import add_product, pack
from model.inference.numba_backend.math import copy
short, long = np.zeros((1, 4), np.float32), np.zeros((1, 64), np.float32)
matrix = pack(np.zeros((65, 4), np.float32), False)  # two tiles of outputs
for beyond in (lambda: copy(long[0], short[0], 5), lambda: add_product(short, matrix, long, 1)):
    try:
        beyond()
    except IndexError:
        print("caught")
"""


def step_all_kinds() -> None:
    """A few frames by every decoder, alone and together, before and beyond the window; prompts by both encoders."""
    clip = make_speech_like(2.0)
    for decoder in ("frame", "harmonic", "source_filter"):
        bundle = random_bundle("tiny", decoder=decoder, encoder="spectral" if decoder == "source_filter" else "seanet")
        enliven(bundle.codec, clip)
        backend = NumbaBackend(bundle, 5)
        for row, frames in enumerate((7, 47, 100)):  # the window of the tiny preset is 48
            backend.join(row, prefill(bundle, clip[: 320 * frames]), OPTIONS[row])
        for active in ([0], [1], [2], [0, 1], [2, 1, 0], []):
            backend.step(active)


def checked(script: str, cache: Path) -> str:
    """What a script prints; its kernels check their bounds, and lie in a folder of their own."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_no_kernel_reaches_beyond_its_arrays(tmp_path: Path) -> None:
    assert checked(RUN, tmp_path) == "done\n"


@pytest.mark.slow
def test_a_debug_run_would_notice(tmp_path: Path) -> None:
    """Both what numba checks and what it cannot, the kernels of `gemm`."""
    assert checked(CAUGHT, tmp_path) == "caught\ncaught\n"
