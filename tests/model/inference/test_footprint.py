"""Memory is counted once, wherever it is seen from."""

from typing import Any

import numpy as np
import torch

from model.inference.backend import backend_for
from model.inference.footprint import nbytes_of


def test_what_is_shared_counts_once() -> None:
    numbers, array = torch.zeros(10), np.zeros(7)
    assert nbytes_of(numbers) == nbytes_of(numbers[3:], {"a": [numbers, numbers.view(2, 5)]}) == 40
    assert nbytes_of((numbers, array), array) == 96


def test_a_bundle_and_its_slots(bundle: Any) -> None:
    tensors = [*bundle.lm.state_dict().values(), *bundle.codec.state_dict().values()]
    weights = sum(tensor.nbytes for tensor in tensors)
    assert weights <= nbytes_of(bundle) < 1.2 * weights
    few, many = (nbytes_of(backend_for(bundle, rows)) for rows in (4, 8))
    assert many > few
    assert nbytes_of(backend_for(bundle, 4), bundle) > few
