"""Adam with a factored second moment against a plain one, and torch's where both are the same."""

import pytest
import torch
from torch import Tensor, nn

from lightstride.recover import factored as room
from lightstride.recover.factored import FactoredAdam

BETAS, RATE = (0.9, 0.98), 1e-2


def learn(weight: nn.Parameter, gradients: list[Tensor]) -> FactoredAdam:
    optimizer = FactoredAdam([{"params": [weight], "lr": RATE}], betas=BETAS)
    for gradient in gradients:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
    return optimizer


def plain(start_OI: Tensor, gradients: list[Tensor]) -> Tensor:
    """The formulas, whole."""
    (b1, b2), weight_OI = BETAS, start_OI.clone()
    mean_OI = torch.zeros_like(start_OI)
    row_O1, column_1I = torch.zeros(len(start_OI), 1), torch.zeros(1, start_OI.shape[1])
    for step, gradient_OI in enumerate(gradients, 1):
        mean_OI = b1 * mean_OI.bfloat16().float() + (1 - b1) * gradient_OI
        row_O1 = b2 * row_O1 + (1 - b2) * gradient_OI.square().mean(1, keepdim=True)
        column_1I = b2 * column_1I + (1 - b2) * gradient_OI.square().mean(0, keepdim=True)
        square_OI = row_O1 * column_1I / row_O1.mean() / (1 - b2**step)
        weight_OI -= RATE * mean_OI / (1 - b1**step) / (square_OI.sqrt() + 1e-8)
    return weight_OI


@pytest.mark.parametrize("piece", [7, 1000])
def test_it_is_the_formula_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PIECE", piece)
    start, gradients = torch.randn(5, 3), [torch.randn(5, 3) for _ in range(4)]
    weight, stack = nn.Parameter(start.clone()), nn.Parameter(start.clone()[:4].view(2, 2, 3))
    learn(weight, gradients)
    torch.testing.assert_close(weight.detach(), plain(start, gradients), rtol=1e-5, atol=1e-6)
    learn(stack, [gradient[:4].view(2, 2, 3) for gradient in gradients])
    expected = plain(start[:4], [gradient[:4] for gradient in gradients])
    torch.testing.assert_close(stack.detach().flatten(0, 1), expected, rtol=1e-5, atol=1e-6)


def test_gradients_whose_squares_are_of_rank_one_are_adams() -> None:
    start, outer = torch.randn(5, 6), torch.outer(torch.randn(5), torch.randn(6))
    gradients = [(-1) ** number * (number + 1.0) * outer for number in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    learn(ours, gradients)
    adam = torch.optim.AdamW([theirs], RATE, BETAS, weight_decay=0.0)
    for gradient in gradients:
        theirs.grad = gradient
        adam.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-3, atol=1e-3 * RATE)


def test_vectors_are_adams_and_a_gradient_of_zero_moves_nothing() -> None:
    vector = nn.Parameter(torch.ones(3))
    optimizer = learn(vector, [torch.ones(3)])
    assert set(optimizer.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}
    matrix = nn.Parameter(torch.ones(2, 3))
    learn(matrix, [torch.zeros(2, 3)] * 2)
    assert torch.equal(matrix.detach(), torch.ones(2, 3))


@pytest.mark.parametrize("shape", [(3,), (64, 32), (2, 8, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_that_are_said_are_those_of_the_state(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = nn.Parameter(torch.ones(shape, dtype=dtype))
    for kind in (FactoredAdam, room.MasterAdam):
        state = kind.fresh(weight)
        state.pop("step")
        assert kind.bytes_of(weight) == sum(each.nbytes for each in state.values())
