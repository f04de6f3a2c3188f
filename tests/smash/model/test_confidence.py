"""Confidence: multiplied up over a draft, and used when decoding."""

import pytest
import torch

from helpers.smash_toys import PROMPTS, toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ModelError
from lightstride.generate import Settings, generate
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.model.confidence import MAX_LOG_ODDS, conditional, cumulative, log_odds
from lightstride.smash.model.config import SmashConfig


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
    assert certain[0] == MAX_LOG_ODDS
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
