"""``python -m model.inference.numba_backend``: compile for the default bundle now rather than at the first start."""

import logging
import time

from model.checkpoint import load_bundle
from model.default_bundle import DEFAULT_BUNDLE
from model.inference.numba_backend.backend import NumbaBackend

begin = time.monotonic()
NumbaBackend(load_bundle(DEFAULT_BUNDLE), 1)
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.info("compiled for this processor (%.1f s)", time.monotonic() - begin)
