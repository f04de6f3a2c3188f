"""Calibrated confidence: the error falls at every place."""

import pytest
import torch

from lightstride.smash.judge.calibrate import calibrate, expected_calibration_errors, expected_error
from lightstride.smash.judge.held_out import (
    HeldOutDrafts,
    trust_at,
)


def overconfident(num: int = 4000) -> HeldOutDrafts:
    """Drafts whose stop head is too sure of itself, by another measure at each place."""
    torch.manual_seed(0)
    truth_NJ = torch.randn(num, 3) * 1.5 - 0.5
    agrees_NJ = torch.rand(num, 3) < torch.sigmoid(-truth_NJ)
    logits_NJ = 3 * truth_NJ - torch.tensor([1.0, 2.0, 0.5])
    features_NJF = torch.cat([logits_NJ[..., None], torch.randn(num, 3, 2)], dim=-1)
    return HeldOutDrafts(features_NJF, agrees_NJ, torch.ones(num, 3, dtype=torch.bool), (num,))


def test_calibration_lowers_the_error_at_every_place() -> None:
    drafts = overconfident()
    found = calibrate(drafts)
    before, after = (
        expected_calibration_errors(drafts, None),
        expected_calibration_errors(drafts, found),
    )
    assert all(b > 0.05 for b in before)
    assert all(a < 0.03 for a in after)
    for row, shift in zip(found, (1.0, 2.0, 0.5), strict=True):
        assert row == pytest.approx([1 / 3, shift / 3, 0, 0], abs=0.15)


def test_calibration_finds_what_speaks_for_a_token() -> None:
    torch.manual_seed(0)
    features_NJF = torch.randn(4000, 2, 3) * 2
    truth_NJ = 0.5 * features_NJF[..., 1] + 0.8 * features_NJF[..., 2] - 1
    agrees_NJ = torch.rand(4000, 2) < torch.sigmoid(truth_NJ)
    drafts = HeldOutDrafts(features_NJF, agrees_NJ, torch.ones(4000, 2, dtype=torch.bool), (4000,))
    found = calibrate(drafts)
    for row in found:
        assert row == pytest.approx([0, 1, 0.5, 0.8], abs=0.15)
    assert max(expected_calibration_errors(drafts, found)) < 0.03
    assert trust_at(drafts, found, 0.9)["agreement"] > 0.9


def test_places_that_no_draft_reaches_stay_as_they_are() -> None:
    none = torch.zeros(5, 2, dtype=torch.bool)
    valid = torch.ones(5, 2, dtype=torch.bool)
    drafts = HeldOutDrafts(torch.randn(5, 2, 3), none, valid, (5,))
    assert calibrate(drafts)[1] == [1.0, 0.0, 0.0, 0.0]


def test_expected_error_against_bins_by_hand() -> None:
    sure = torch.tensor([0.02, 0.03, 0.99, 1.0])
    right = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert expected_error(sure, right) == pytest.approx((0.95 + 0.01) / 4, abs=1e-6)
    assert expected_error(sure[:0], right[:0]) == 0
