"""`encodec` and `torchaudio` import on a torch without CUDA, in a process that has imported neither."""

import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_ENCODEC = """
from model.codec.encodec_import import import_encodec, import_torchaudio_functional
assert import_encodec().EncodecModel.__name__ == "EncodecModel"
assert import_torchaudio_functional().melscale_fbanks(513, 0.0, 12000.0, 64, 24000).shape == (513, 64)
import_encodec()  # again
"""
FUNCTIONAL_FIRST = """
from model.codec.encodec_import import ensure_importable, import_encodec, import_torchaudio_functional
import_torchaudio_functional()
ensure_importable()
import_encodec()
"""
NOTHING_WITH_CUDA = """
import sys, torch
torch.version.cuda = "12.8"
from model.codec.encodec_import import ensure_importable
ensure_importable()
assert "torchaudio._extension" not in sys.modules
"""
NOTHING_AFTER_AN_IMPORT = """
import sys
from types import ModuleType
sys.modules["torchaudio"] = ModuleType("torchaudio")
from model.codec.encodec_import import ensure_importable
ensure_importable()
assert "torchaudio._extension" not in sys.modules
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(IMPORT_ENCODEC, id="encodec"),
        pytest.param(FUNCTIONAL_FIRST, id="torchaudio first"),
        pytest.param(NOTHING_WITH_CUDA, id="no stand-in with CUDA"),
        pytest.param(NOTHING_AFTER_AN_IMPORT, id="no stand-in for what is there"),
    ],
)
def test_in_a_fresh_process(code: str) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr
