"""Figures of an evaluation: intervals that hold the truth, and how codebooks are used."""

import numpy as np
import pytest

from model.constants import VOCABULARY
from model.training.evaluate import bootstrap, codebook_figures


class TestCodebooks:
    def test_entropy_of_even_and_of_lone_codes(self) -> None:
        counts = np.zeros((20, 3, VOCABULARY), dtype=np.int64)
        counts[:, 0, :64] = 5
        counts[:, 1, 7] = 100
        counts[:, 2] = 1
        even, lone, all_of_them = codebook_figures(counts)
        assert even["entropy"] == {name: pytest.approx(np.log(64)) for name in ("mean", "low", "high")}
        assert even["codes_used"] == 64
        assert lone["entropy"]["mean"] == 0.0
        assert lone["codes_used"] == 1
        assert all_of_them["entropy"]["mean"] == pytest.approx(np.log(VOCABULARY))
        assert all_of_them["codes_used"] == VOCABULARY

    def test_interval_is_as_wide_as_clips_differ(self) -> None:
        """Clips of one code each, in four codes: the interval lies around the entropy, and shrinks with clips."""
        rng = np.random.default_rng(0)

        def counts(clips: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
            out = np.zeros((clips, 1, VOCABULARY), dtype=np.int64)
            out[np.arange(clips), 0, rng.integers(0, 4, clips)] = 50
            return out

        (few,), (many,) = codebook_figures(counts(12)), codebook_figures(counts(400))
        for figures in (few, many):
            entropy = figures["entropy"]
            assert entropy["low"] <= entropy["mean"] <= entropy["high"]
        width = {len_: f["entropy"]["high"] - f["entropy"]["low"] for len_, f in ((12, few), (400, many))}
        assert width[400] < 0.5 * width[12]
        assert many["entropy"]["mean"] == pytest.approx(np.log(4), abs=0.02)


def test_bootstrap_weighs_clips() -> None:
    figure = bootstrap([1.0, 3.0], [3.0, 1.0])
    assert figure["mean"] == 1.5
    assert figure["low"] == 1.0
    assert figure["high"] == 3.0
