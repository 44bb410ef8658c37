"""Every number the project derives from, in one place.

Time is counted in frames. One frame is one coarse token, one mel frame and ``HOP_SAMPLES`` samples.
"""

from fractions import Fraction

SAMPLE_RATE_HZ = 24_000
ENCODEC_RATIOS = (8, 5, 4, 2)  # strides of EnCodec's SEANet, decoder order
HOP_SAMPLES = 8 * 5 * 4 * 2  # 320 samples = 13.3 ms
FRAME_RATE_HZ = SAMPLE_RATE_HZ // HOP_SAMPLES  # 75 frames a second
FRAME_SECONDS = Fraction(HOP_SAMPLES, SAMPLE_RATE_HZ)  # 1/75 s, exact

MEL_BANDS = 64
MEL_WINDOW_SAMPLES = 1024  # 42.7 ms
MEL_LEFT_SAMPLES = MEL_WINDOW_SAMPLES - HOP_SAMPLES  # 704: the window of frame t ends at sample 320 (t + 1)

VOCABULARY = 1024  # entries of one EnCodec codebook
MAX_CODEBOOKS = 8  # 8 codebooks of 10 bits at 75 Hz = 6 kbit/s
LATENT_DIM = 128  # width of EnCodec's latent

MAX_SEED = 2**63 - 1  # of the random numbers: an int64

assert SAMPLE_RATE_HZ % HOP_SAMPLES == 0
assert FRAME_SECONDS == Fraction(1, FRAME_RATE_HZ)


def frames_in(samples: int) -> int:
    """Whole frames in a number of samples at ``SAMPLE_RATE_HZ``; a trailing part of a frame does not count."""
    return samples // HOP_SAMPLES


def frames_for_seconds(seconds: float) -> int:
    """Frames that cover ``seconds``, rounded up (a hair above a whole frame does not cost another one)."""
    exact = seconds * FRAME_RATE_HZ
    nearest = round(exact)
    return nearest if abs(exact - nearest) < 1e-6 else int(-(-exact // 1))
