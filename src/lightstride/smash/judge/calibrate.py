"""Calibration of the confidence, fitted to how often held-out drafts were right.

For each place of a draft, one after the other, the weights of `confidence.py` minimize the cross
entropy of its probability to "the next token is right", over drafts that were right until there
(Platt, 1999; sequential as in DSpark), with a pull to the stop head as it is: for weights w,
terms x and outcomes y,

    minimize  sum_m CE(sigmoid(w . x_m), y_m) + PRIOR_STRENGTH |w - UNCALIBRATED|^2.

The expected calibration error compares, in bins of equal
width, the probability that all tokens so far are right with how often they were.

Shapes: N drafts, J places, F features, M drafts that count at one place.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lightstride.smash.judge.held_out import HeldOutDrafts
from lightstride.smash.model.confidence import Calibration, cumulative

NUM_BINS = 15
PRIOR_STRENGTH = 1.0
"""Strength of the pull to the stop head as it is, in drafts."""
UNCALIBRATED = (1.0, 0.0, 0.0, 0.0)
"""The stop head as it is."""


def calibrate(drafts: HeldOutDrafts) -> list[list[float]]:
    """Scale, offset and weights of each place."""
    return [
        fit_place(drafts.features_NJF[counts_N, j], ~drafts.agrees_NJ[counts_N, j])
        for j, counts_N in enumerate(drafts.reached().T)
    ]


def fit_place(features_MF: Tensor, wrong_M: Tensor) -> list[float]:
    """Scale, offset and weights for one place; neutral where nothing counts."""
    if not len(features_MF):
        return list(UNCALIBRATED)
    logits_M1, others = features_MF[:, :1].double(), features_MF[:, 1:].double()
    terms = torch.cat([logits_M1, torch.ones_like(logits_M1), -others], dim=1)
    wrong_M = wrong_M.double()
    weights = torch.tensor(UNCALIBRATED, dtype=torch.float64, requires_grad=True)
    neutral = torch.tensor(UNCALIBRATED, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = binary_cross_entropy_with_logits(terms @ weights, wrong_M, reduction="sum")
        total = total + PRIOR_STRENGTH * (weights - neutral).square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return [round(value, 5) for value in weights.detach().tolist()]


def expected_calibration_errors(
    drafts: HeldOutDrafts, calibration: Calibration | None
) -> list[float]:
    """Expected calibration error of each place."""
    sure_NJ = cumulative(drafts.features_NJF, calibration)
    right_NJ = drafts.agrees_NJ.long().cumprod(-1).double()
    errors = []
    for place in range(sure_NJ.shape[1]):
        valid_N = drafts.valid_NJ[:, place]
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
