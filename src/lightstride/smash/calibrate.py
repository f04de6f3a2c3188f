"""Confidence that means what it says: the stop head's logits fitted to held-out agreement.

For each place of a draft, one after the other, scale a and offset b minimize the cross entropy of
sigmoid(a z + b) to "the next token is wrong", over drafts that were right until there (Platt,
1999; sequential as in DSpark).  The expected calibration error compares, in bins of equal width,
the probability that all tokens so far are right with how often they were.

Shapes: N drafts, J places, M drafts that count at one place.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lightstride.smash.observe import Observed
from lightstride.smash.stops import Calibration, cumulative

NUM_BINS = 15
PRIOR = 1.0
"""Strength of the pull of the scale to 1 and of the offset to 0, in drafts."""


def calibrate(observed: Observed) -> list[list[float]]:
    """Scale and offset of each place."""
    counts_NJ = observed.reached()
    return [
        fit(observed.stop_logits_NJ[counts_NJ[:, j], j], ~observed.agrees_NJ[counts_NJ[:, j], j])
        for j in range(counts_NJ.shape[1])
    ]


def fit(logits_M: Tensor, wrong_M: Tensor) -> list[float]:
    """Scale and offset for one place; as they were where nothing counts."""
    if not len(logits_M):
        return [1.0, 0.0]
    logits_M, wrong_M = logits_M.double(), wrong_M.double()
    line_2 = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    neutral_2 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([line_2], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = binary_cross_entropy_with_logits(
            line_2[0] * logits_M + line_2[1], wrong_M, reduction="sum"
        )
        total = total + PRIOR * (line_2 - neutral_2).square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    scale, offset = line_2.detach().tolist()
    return [round(scale, 5), round(offset, 5)]


def calibration_errors(observed: Observed, calibration: Calibration | None) -> list[float]:
    """Expected calibration error of each place."""
    sure_NJ = cumulative(observed.stop_logits_NJ, calibration)
    right_NJ = observed.agrees_NJ.long().cumprod(-1).double()
    errors = []
    for place in range(sure_NJ.shape[1]):
        valid_N = observed.valid_NJ[:, place]
        errors.append(expected_error(sure_NJ[valid_N, place], right_NJ[valid_N, place]))
    return errors


def expected_error(sure_M: Tensor, right_M: Tensor) -> float:
    """Mean distance, over drafts, between the mean probability of a bin and what came true."""
    if not len(sure_M):
        return 0.0
    bins_M = (sure_M * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gaps_M = torch.zeros(NUM_BINS, dtype=torch.float64)
    gaps_M.index_add_(0, bins_M, sure_M.double() - right_M.double())
    return float(gaps_M.abs().sum() / len(sure_M))
