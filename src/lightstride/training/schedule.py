"""Learning rates over a training."""

import math

import torch


def rate_at(share: float, warmup: float) -> float:
    """The learning rate at a share of the training, as a part of the largest one."""
    if share < warmup:
        return max(share, 0.01 * warmup) / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def set_rates(optimizer: torch.optim.Optimizer, part: float) -> None:
    """Give every group its part of its largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * part
