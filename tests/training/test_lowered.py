"""A module called with lowered copies of its weights, against the module lowered itself."""

import copy

import torch
from torch import Tensor, nn

from lightstride.training.lowered import call_lowered


def test_it_computes_as_the_lowered_module_and_the_weights_learn() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    module[2].requires_grad_(False).to(torch.bfloat16)
    inputs = torch.randn(3, 8, dtype=torch.bfloat16)
    found = call_lowered(module, torch.bfloat16, inputs)
    assert isinstance(found, Tensor)
    assert torch.equal(found, copy.deepcopy(module).to(torch.bfloat16)(inputs))
    found.sum().backward()
    assert module[0].weight.dtype == module[0].weight.grad.dtype == torch.float32
    assert module[0].weight.grad.any()


def test_other_tensors_are_replaced_by_name() -> None:
    module = nn.Linear(2, 2)
    zeros = {"weight": torch.zeros(2, 2)}
    found = call_lowered(module, torch.float32, torch.ones(1, 2), others=zeros)
    assert isinstance(found, Tensor)
    assert torch.equal(found[0], module.bias)
