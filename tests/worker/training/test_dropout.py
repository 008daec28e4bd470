"""Dropout with a probability that is data: the bits of torch's own, and no new compilation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.training.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.0, 0.2511, 0.5, 0.97, 1.0])
def test_outputs_gradients_and_later_random_numbers_are_torch_s(probability: float, dtype: torch.dtype) -> None:
    values = torch.randn(30, 512, dtype=dtype)
    seen = []
    for module in (nn.Dropout(probability), Dropout(probability)):
        given = values.clone().requires_grad_()
        torch.manual_seed(3)
        dropped = module.train()(given)
        dropped.float().square().sum().backward()
        assert given.grad is not None
        seen.append((dropped, given.grad, torch.rand(5)))
    for theirs, ours in zip(*seen, strict=True):
        assert torch.equal(theirs, ours)


def test_evaluation_drops_nothing() -> None:
    values = torch.randn(4, 8)
    assert Dropout(0.5).eval()(values) is values


def test_it_is_no_part_of_a_network_s_state_and_stays_on_the_cpu() -> None:
    module = nn.Sequential(nn.Linear(2, 2), Dropout(0.5))
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
    with torch.device("meta"):
        assert nn.Sequential(nn.Linear(2, 2), Dropout(0.5)).train()(torch.empty(3, 2)).shape == (3, 2)
