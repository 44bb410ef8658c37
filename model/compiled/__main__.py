"""``python -m model.compiled``: compile for the default bundle now rather than at the first start."""

import logging
import time
from pathlib import Path

from model.bundle import load_bundle
from model.compiled.slots import CompiledSlots

begin = time.monotonic()
CompiledSlots(load_bundle(Path(__file__).parents[2] / "weights" / "default"), 1)
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.info("compiled for this processor (%.1f s)", time.monotonic() - begin)
