"""The check at the start: it holds for our slots, leaves them as new, and sees the smallest leak between rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.inference.invariance import FEW, keeps_rows_apart
from model.inference.numba_backend.backend import NumbaBackend
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from model.inference.torch_backend import TorchBackend
from model.inference.types import Frames

KINDS = [TorchBackend, NumbaBackend]
FIELDS = ["codes", "logprobs", "fine_logprobs", "samples", "mel"]


@pytest.mark.parametrize("rows", [1, 2, 4, 9])
@pytest.mark.parametrize("kind", KINDS, ids=["torch", "compiled"])
def test_it_holds_and_leaves_the_slots_as_new(bundle: Bundle, speech_like: Tensor, kind: Any, rows: int) -> None:
    checked, new = kind(bundle, rows), kind(bundle, rows)
    assert keeps_rows_apart(bundle, checked)
    prompt, row = prefill(bundle, speech_like[:9_600]), rows // 2
    for slots in (checked, new):
        slots.join(row, prompt, SamplingOptions(seed=7))
    for _ in range(20):
        mine, its = checked.step([row]), new.step([row])
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))


def off_by_one(values: Any) -> Any:
    """The next number of each."""
    return values + 1 if values.dtype == np.int64 else np.nextafter(values, np.float32(np.inf))


class Leaking(NumbaBackend):
    """Slots in which company of one size moves a single bit of the last row, as another kernel would."""

    company, field = 2, "samples"

    def step(self, active: Sequence[int]) -> Frames:
        made = super().step(active)
        if len(active) == self.company:
            part = getattr(made, self.field)
            part[-1, ...] = off_by_one(part[-1, ...])
        return made


@pytest.mark.parametrize("company", [*FEW, 8])
@pytest.mark.parametrize("field", FIELDS)
def test_one_bit_is_seen(bundle: Bundle, company: int, field: str) -> None:
    slots = Leaking(bundle, 8)
    slots.company, slots.field = company, field
    assert not keeps_rows_apart(bundle, slots)


class Mixing(TorchBackend):
    """Slots whose rows see the last mel frame of the row beside them."""

    def step(self, active: Sequence[int]) -> Frames:
        if len(active) > 1:
            with torch.inference_mode():
                self._state.mel[active[-1]] += 1e-6 * self._state.mel[active[0]]
        return super().step(active)


def test_rows_that_hear_each_other_are_seen(bundle: Bundle) -> None:
    assert not keeps_rows_apart(bundle, Mixing(bundle, 4))


class Broken(NumbaBackend):
    def step(self, active: Sequence[int]) -> Frames:
        made = super().step(active)
        made.samples[:] = np.nan
        return made


def test_what_is_no_number_equals_nothing(bundle: Bundle) -> None:
    assert not keeps_rows_apart(bundle, Broken(bundle, 4))
