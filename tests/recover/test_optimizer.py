"""Adam with masters against torch's own."""

import pytest
import torch
from torch import nn

from lightstride.recover import optimizer as room
from lightstride.recover.optimizer import MasterAdam


def learn(kind: type, weight: nn.Parameter, gradients: list[torch.Tensor]) -> torch.optim.Optimizer:
    more = {"weight_decay": 0.0} if kind is torch.optim.AdamW else {}
    optimizer = kind([{"params": [weight], "lr": 1e-2}], betas=(0.9, 0.98), **more)
    for gradient in gradients:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
    return optimizer


def test_it_is_torchs_adam_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PIECE", 7)
    start, gradients = torch.randn(5, 6), [torch.randn(5, 6) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    learn(MasterAdam, ours, gradients)
    learn(torch.optim.AdamW, theirs, gradients)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_steps_too_small_for_bf16_add_up_in_the_master() -> None:
    weight = nn.Parameter(torch.full((3,), 100.0, dtype=torch.bfloat16))
    optimizer = learn(MasterAdam, weight, [torch.ones(3)] * 100)
    master = optimizer.state[weight]["master"]
    torch.testing.assert_close(master, torch.full((3,), 99.0), rtol=1e-3, atol=0)
    assert torch.equal(weight.detach(), master.bfloat16())


def test_clipping_scales_the_step_and_tells_the_norm() -> None:
    ones = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    optimizer = MasterAdam([{"params": ones, "lr": 1e-2}])
    for weight in ones:
        weight.grad = torch.full((4,), 3.0)
    assert optimizer.clip(1.0) == pytest.approx(72**0.5)
    optimizer.step()
    assert float(optimizer.state[ones[0]]["exp_avg"][0]) == pytest.approx(0.3 / 72**0.5, rel=1e-4)
    ones[0].grad[0] = torch.nan
    assert optimizer.clip(1.0) != optimizer.clip(1.0)
