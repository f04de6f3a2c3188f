"""Confidence: calibrated, multiplied up, and used when decoding."""

import pytest
import torch

from helpers.smash_toys import PROMPTS, toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ModelError
from lightstride.generate import Settings, generate
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.judge.calibrate import calibrate, calibration_errors, expected_error
from lightstride.smash.judge.held_out import (
    Observed,
    agreement,
    lossless_tokens_per_step,
    trusted,
)
from lightstride.smash.model.confidence import SUREST, conditional, cumulative, log_odds
from lightstride.smash.model.config import SmashConfig


def overconfident(num: int = 4000) -> Observed:
    """Drafts whose stop head is too sure of itself, by another measure at each place."""
    torch.manual_seed(0)
    truth_NJ = torch.randn(num, 3) * 1.5 - 0.5
    agrees_NJ = torch.rand(num, 3) < torch.sigmoid(-truth_NJ)
    logits_NJ = 3 * truth_NJ - torch.tensor([1.0, 2.0, 0.5])
    features_NJF = torch.cat([logits_NJ[..., None], torch.randn(num, 3, 2)], dim=-1)
    return Observed(features_NJF, agrees_NJ, torch.ones(num, 3, dtype=torch.bool), (num,))


def test_calibration_lowers_the_error_at_every_place() -> None:
    observed = overconfident()
    found = calibrate(observed)
    before, after = calibration_errors(observed, None), calibration_errors(observed, found)
    assert all(b > 0.05 for b in before)
    assert all(a < 0.03 for a in after)
    for row, shift in zip(found, (1.0, 2.0, 0.5), strict=True):
        assert row == pytest.approx([1 / 3, shift / 3, 0, 0], abs=0.15)


def test_calibration_finds_what_speaks_for_a_token() -> None:
    torch.manual_seed(0)
    features_NJF = torch.randn(4000, 2, 3) * 2
    truth_NJ = 0.5 * features_NJF[..., 1] + 0.8 * features_NJF[..., 2] - 1
    agrees_NJ = torch.rand(4000, 2) < torch.sigmoid(truth_NJ)
    observed = Observed(features_NJF, agrees_NJ, torch.ones(4000, 2, dtype=torch.bool), (4000,))
    found = calibrate(observed)
    for row in found:
        assert row == pytest.approx([0, 1, 0.5, 0.8], abs=0.15)
    assert max(calibration_errors(observed, found)) < 0.03
    assert trusted(observed, found, 0.9)["agreement"] > 0.9


def test_places_that_no_draft_reaches_stay_as_they_are() -> None:
    none = torch.zeros(5, 2, dtype=torch.bool)
    valid = torch.ones(5, 2, dtype=torch.bool)
    observed = Observed(torch.randn(5, 2, 3), none, valid, (5,))
    assert calibrate(observed)[1] == [1.0, 0.0, 0.0, 0.0]


def test_expected_error_against_bins_by_hand() -> None:
    sure = torch.tensor([0.02, 0.03, 0.99, 1.0])
    right = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert expected_error(sure, right) == pytest.approx((0.95 + 0.01) / 4, abs=1e-6)
    assert expected_error(sure[:0], right[:0]) == 0


def test_confidence_of_a_draft_is_the_product_of_its_places() -> None:
    features = torch.randn(7, 3, 3)
    logits, odds, opinions = features.unbind(-1)
    tables = [[[0.5, 0.1, 0.7, 0.3], [2.0, -0.3, 0.0, -1.0], [1.0, 0.0, 2.0, 0.0]]]
    tables += [[row[:2] for row in tables[0]]]  # of grafts from before there was more
    for table in tables:
        each = []
        for j, row in enumerate(table):
            scale, offset, by_odds, by_opinion = [*row, 0.0, 0.0][:4]
            sum_N = by_odds * odds[:, j] + by_opinion * opinions[:, j]
            each.append(torch.sigmoid(sum_N - scale * logits[:, j] - offset))
        torch.testing.assert_close(conditional(features, table)[:, 1], each[1])
        torch.testing.assert_close(cumulative(features, table)[:, 2], each[0] * each[1] * each[2])
    torch.testing.assert_close(conditional(features, None), torch.sigmoid(-logits))


def test_log_odds_are_of_the_likeliest_token() -> None:
    logits = torch.randn(6, 9) * 4
    best = logits.double().softmax(-1).amax(-1)
    torch.testing.assert_close(log_odds(logits), torch.log(best / (1 - best)).float())
    certain = log_odds(torch.tensor([[99.0, 0.0], [0.0, 0.0]]))
    assert certain[0] == SUREST
    assert certain[1] == pytest.approx(0, abs=1e-6)


def test_a_calibrated_model_goes_on_while_the_whole_draft_is_sure() -> None:
    model = toy()
    with torch.no_grad():
        model.stop.weight.zero_()
        model.stop.bias.fill_(-2.0)  # P(go on) is 0.88 at every token
    decoder = SmashDecoder(model, byte_tokenizer())

    def longest(confidence: float) -> int:
        settings = Settings(
            max_new_tokens=12, confidence=confidence, mode="trust", ignore_end_tokens=True
        )
        return max(len(step) for a in generate(decoder, PROMPTS, settings) for step in a.steps)

    assert [longest(c) for c in (0.9, 0.85, 0.5)] == [1, 4, 4]
    model.config.calibration = [[1.0, 0.0]] * 3
    assert [longest(c) for c in (0.9, 0.85, 0.7, 0.5)] == [1, 2, 3, 4]
    model.config.calibration = [[1.0, 0.0], [0.0, 9.0], [1.0, 0.0]]
    assert longest(0.5) == 2


def test_calibrations_too_short_are_refused() -> None:
    with pytest.raises(ModelError, match="calibration"):
        SmashConfig(max_segment=4, calibration=[[1.0, 0.0]])


def test_steps_by_hand() -> None:
    agrees = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    valid = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    observed = Observed(torch.full((6, 2, 3), -9.0), agrees, valid, (4, 2))
    # The first document: 3 tokens, then 1; the second: 2 tokens at once.
    assert lossless_tokens_per_step(observed) == 6 / 3
    found = trusted(observed, None, 0.5)
    assert found["tokens_per_step"] == 6 / 3
    assert agreement(observed) == [0.75, 0.5]
    assert trusted(observed, None, 1.0)["tokens_per_step"] == 1
