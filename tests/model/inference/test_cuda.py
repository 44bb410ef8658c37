"""What of the GPU's part a CPU can run; the rest is marked `cuda` (test_torch_backend.py)."""

import pytest
import torch

from model.inference import cuda


def test_the_switch_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.SWITCH, raising=False)
    assert cuda.graphs_wanted()
    monkeypatch.setenv(cuda.SWITCH, "0")
    assert not cuda.graphs_wanted()


def test_agreement_of_a_graph_with_its_operations() -> None:
    codes, values = torch.arange(4), torch.tensor([1.0, float("nan"), 0.5])
    assert cuda.agree((codes, values), (codes.clone(), values.clone()))
    for other in (torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, float("nan"), 0.25]), torch.zeros(2)):
        assert not cuda.agree((codes, values), (codes, other))
    assert not cuda.agree((codes, values), (codes + 1, values))


def test_a_cpu_needs_no_streams() -> None:
    device = torch.device("cpu")
    assert cuda.new_stream(device) is None and cuda.mark(device) is None
    with cuda.on(device):
        assert torch.zeros(1).device == device
