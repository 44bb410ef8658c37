"""The form of samples in memory."""

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
BLOCK_FRAMES = 65_536  # libsndfile's Vorbis has crashed on larger ones
