"""Measures of sound, on signals whose measures are known."""

import math

import numpy as np
import pytest

from benchmarks.quality import acoustics

TIMES = np.arange(24_000) / 24_000
RNG = np.random.default_rng(0)


def test_level() -> None:
    assert acoustics.level_db(np.sin(2 * np.pi * 100 * TIMES)) == pytest.approx(-3.01, abs=0.01)
    assert acoustics.level_db(0.1 * np.sin(2 * np.pi * 100 * TIMES)) == pytest.approx(-23.01, abs=0.01)
    assert acoustics.level_db(np.zeros(100)) == pytest.approx(-100.0)


@pytest.mark.parametrize("silent", [0.0, 0.3, 1.0])
def test_silence(silent: float) -> None:
    tone = 0.1 * np.sin(2 * np.pi * 200 * TIMES)
    tone[: round(silent * 24_000)] *= 10 ** (-40 / 20)
    assert acoustics.silence_ratio(tone, -23.0) == pytest.approx(silent)
    assert acoustics.silence_ratio(tone, -90.0) == 0.0


@pytest.mark.parametrize("slope", [-6.0, 0.0, 3.0])
def test_tilt(slope: float) -> None:
    spectrum = np.fft.rfft(RNG.standard_normal(24_000))
    frequency = np.maximum(np.fft.rfftfreq(24_000, 1 / 24_000), 20)
    noise = np.fft.irfft(spectrum * 10 ** (slope * np.log2(frequency / 1000) / 20))
    assert acoustics.tilt_db(noise) == pytest.approx(slope, abs=0.4)
    assert acoustics.tilt_db(5 * noise) == pytest.approx(acoustics.tilt_db(noise), abs=1e-3)


def test_entropy() -> None:
    assert acoustics.entropy(np.zeros(75, dtype=np.int64)) == 0.0
    assert acoustics.entropy(np.arange(75)) == pytest.approx(math.log(75))
    assert acoustics.entropy(np.array([1, 1, 2, 2])) == pytest.approx(math.log(2))


def test_voiced_ratio_and_range() -> None:
    f0 = np.concatenate([np.zeros(50), np.full(25, 100.0), np.full(25, 200.0)])
    assert acoustics.voiced_ratio(f0) == 0.5
    assert acoustics.pitch_range(f0) == pytest.approx(12.0)
    assert acoustics.pitch_range(f0[:60]) is None


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return RNG.standard_normal((400, 8)) @ RNG.standard_normal((8, 8))


def test_frechet_of_a_set_with_itself(cloud: np.ndarray) -> None:
    assert acoustics.frechet(cloud, cloud) == pytest.approx(0.0, abs=1e-6)
    assert acoustics.frechet(cloud, RNG.permutation(cloud)) == pytest.approx(0.0, abs=1e-6)


def test_frechet_grows_with_a_shift(cloud: np.ndarray) -> None:
    """A shift by a vector adds its squared length, and nothing else."""
    for size in (0.1, 1.0, 5.0):
        assert acoustics.frechet(cloud, cloud + size) == pytest.approx(8 * size**2, rel=1e-6)


def test_frechet_of_known_gaussians() -> None:
    """Independent axes: the sum of squared differences of the deviations."""
    one, two = RNG.standard_normal((20_000, 3)), RNG.standard_normal((20_000, 3)) * [2.0, 3.0, 1.0]
    assert acoustics.frechet(one, two, shrink=0.0) == pytest.approx(1.0 + 4.0, rel=0.05)
    assert acoustics.frechet(one, two) == pytest.approx(acoustics.frechet(two, one))


def test_frechet_is_defined_with_fewer_vectors_than_dimensions() -> None:
    few = RNG.standard_normal((5, 20))
    assert 0 < acoustics.frechet(few, RNG.standard_normal((6, 20))) < 100
