"""Confidence that means what it says, fitted to how often held-out drafts were right.

For each place of a draft, one after the other, a, b and c minimize the cross entropy of
sigmoid(a z + b - c o) to "the next token is wrong", over drafts that were right until there, with
z the stop head's logit and o the log odds of the drafted token (Platt, 1999; sequential as in
DSpark).  The expected calibration error compares, in bins of equal width, the probability that all
tokens so far are right with how often they were.

Shapes: N drafts, J places, M drafts that count at one place.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lightstride.smash.observe import Observed
from lightstride.smash.stops import Calibration, cumulative

NUM_BINS = 15
PRIOR = 1.0
"""Strength of the pull to the stop head as it is, in drafts."""
NEUTRAL = (1.0, 0.0, 0.0)
"""The stop head as it is."""


def calibrate(observed: Observed) -> list[list[float]]:
    """Scale, offset and weight of each place."""
    found = []
    for j, counts_N in enumerate(observed.reached().T):
        logits_M, odds_M = observed.stop_logits_NJ[counts_N, j], observed.odds_NJ[counts_N, j]
        found.append(fit(logits_M, odds_M, ~observed.agrees_NJ[counts_N, j]))
    return found


def fit(logits_M: Tensor, odds_M: Tensor, wrong_M: Tensor) -> list[float]:
    """Scale, offset and weight for one place; neutral where nothing counts."""
    if not len(logits_M):
        return list(NEUTRAL)
    features_M3 = torch.stack([logits_M, torch.ones_like(logits_M), -odds_M], dim=1).double()
    wrong_M = wrong_M.double()
    line_3 = torch.tensor(NEUTRAL, dtype=torch.float64, requires_grad=True)
    neutral_3 = torch.tensor(NEUTRAL, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([line_3], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = binary_cross_entropy_with_logits(features_M3 @ line_3, wrong_M, reduction="sum")
        total = total + PRIOR * (line_3 - neutral_3).square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return [round(value, 5) for value in line_3.detach().tolist()]


def calibration_errors(observed: Observed, calibration: Calibration | None) -> list[float]:
    """Expected calibration error of each place."""
    sure_NJ = cumulative(observed.stop_logits_NJ, observed.odds_NJ, calibration)
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
