"""Random layers and their Gram matrices, and the loss of a cut by brute force."""

import torch
from torch import Tensor

from lightstride.prune.cut.refit import (
    add_ridge,
)

HEAD = 4


def layer(outputs: int, inputs: int, *, tokens: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random weights (O, I) and correlated calibration inputs (N, I)."""
    generator = torch.Generator().manual_seed(seed)
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    scale_I = torch.rand(inputs, generator=generator) + 0.1
    inputs_NI = (torch.randn(tokens, inputs, generator=generator) @ mixing_II) * scale_I
    return torch.randn(outputs, inputs, generator=generator), inputs_NI


def gram(inputs_NI: Tensor) -> Tensor:
    return inputs_NI.T @ inputs_NI


def brute_loss(weight_OI: Tensor, inputs_NI: Tensor, columns: list[int], damping: float) -> float:
    """Ridge and data loss of the best weights on these inputs, by least squares."""
    weight, inputs = weight_OI.double(), inputs_NI.double()
    _, ridge = add_ridge(gram(inputs_NI), damping)
    rows = torch.cat([inputs, ridge**0.5 * torch.eye(inputs.shape[1], dtype=torch.float64)])
    target = rows @ weight.T
    fitted = torch.linalg.lstsq(rows[:, columns], target).solution
    return float((target - rows[:, columns] @ fitted).square().sum()) / 2
