"""Local pruning as the published Tyr code does it: the plain way, to compare with.

Each level starts from the dense weights again, groups of channels go in at most 16 rounds (heads
in a single one), the cheapest by 1/2 tr(W_g^T [H^-1]_gg^-1 W_g) + tr(W_g^T G_g) with G = H W, and
the weights that stay are refitted by least squares.  See section 3.2 of
https://arxiv.org/abs/2503.09657 and the authors' code.

Shapes: I inputs in groups of S, O outputs.
"""

import torch
from torch import Tensor


def published_loss(
    weight_OI: Tensor, gram_II: Tensor, group_size: int, num_kept: int, rounds: int
) -> float:
    """1/2 tr((W - V) H (W - V)^T) of the weights that it ends with, the ridge not counted."""
    weight = weight_OI.T.float().clone()
    damped = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(len(gram_II))
    target = damped @ weight
    inverse = torch.linalg.inv(damped)
    num_groups = len(weight) // group_size
    num_cut = num_groups - num_kept
    rounds = min(rounds, num_cut)
    gone = torch.zeros(num_groups, dtype=torch.bool)
    for index in range(rounds):
        count = num_cut // rounds + (index < num_cut % rounds)
        scores = group_scores(weight, inverse, target, group_size)
        scores[gone] += 1e20
        chosen = scores.topk(count, largest=False).indices
        gone[chosen] = True
        columns = (chosen[:, None] * group_size + torch.arange(group_size)).flatten()
        pull = inverse[:, columns] @ torch.linalg.inv(inverse[columns][:, columns])
        weight -= pull @ weight[columns]
        inverse -= pull @ inverse[columns]
        weight[columns] = 0
        inverse[columns] = 0
        inverse[:, columns] = 0
    kept = (~gone).repeat_interleave(group_size).nonzero().flatten()
    fitted = torch.linalg.solve(damped[kept][:, kept], target[kept])
    change = weight_OI.T.double().clone()
    change[kept] -= fitted.double()
    return float((change * (gram_II.double() @ change)).sum()) / 2


def group_scores(weight: Tensor, inverse: Tensor, target: Tensor, group_size: int) -> Tensor:
    """Saliency of every group, with the signed first-order term of the code."""
    if group_size == 1:
        curvature = weight / inverse.diagonal().clamp_min(1e-20)[:, None]
        return (weight * (curvature / 2 + target)).sum(1)
    scores = []
    for start in range(0, len(weight), group_size):
        rows = slice(start, start + group_size)
        block = inverse[rows, rows]
        solved = torch.linalg.pinv(block) @ weight[rows]
        scores.append((weight[rows] * (solved / 2 + target[rows])).sum())
    return torch.stack(scores)
