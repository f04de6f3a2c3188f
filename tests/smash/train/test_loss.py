"""The loss of one batch: short drafts beside long ones, and weights of places."""

import random
from collections import Counter

import pytest
import torch

from helpers.agree import TIE
from helpers.answered_toys import sharp_llama
from helpers.smash_toys import toy
from helpers.smash_trainings import EXAMPLES
from lightstride.smash.data.packing import make_batch
from lightstride.smash.train.loss import LossWeights, draft_loss, place_weights, tokens_of_drafts
from lightstride.smash.train.teacher_forced import find_starts, predict_drafts, tokens_at


def test_short_drafts_teach_their_places_as_long_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(sharp_llama(), num_layers=1, max_segment=5)
    batch = make_batch([EXAMPLES[2:4], EXAMPLES[7:8]])
    taps = model.read_packed(batch.unmerged())
    found = []
    for num_tokens in (3, 5):
        starts = find_starts(batch.unmerged(), batch.documents_BL, num_tokens)
        drafts = predict_drafts(model, taps, starts, tokens_at(batch.tokens_BL, starts))
        leads = model.micro_logits(drafts.vectors_NKD).topk(2).values.diff().abs()
        assert leads.min() > TIE  # so that no rounding changes what is likeliest
        found.append(draft_loss(model, drafts, batch, taps[-1], LossWeights()))
        weights = torch.tensor([*place_weights(4, 0.85)[:2], 0, 0])
        monkeypatch.setattr("lightstride.smash.train.loss.place_weights", lambda *_, w=weights: w)
    short, long = found
    assert short.loss > 0
    torch.testing.assert_close(short.loss, long.loss)
    assert torch.equal(short.agrees_NJ, long.agrees_NJ[:, :2])


def test_some_readings_have_short_drafts() -> None:
    rng = random.Random(0)
    lengths = Counter(tokens_of_drafts(6, 0.6, rng) for _ in range(1000))
    assert set(lengths) == {2, 3, 6}
    assert lengths[6] == pytest.approx(400, abs=50)
    assert lengths[2] == pytest.approx(300, abs=50)
    assert {tokens_of_drafts(2, 1.0, rng) for _ in range(20)} == {2}
    assert {tokens_of_drafts(1, 0.5, rng) for _ in range(20)} == {1}


def test_weights_of_places_sum_to_one_and_fall() -> None:
    weights = place_weights(4, 0.5)
    assert float(weights.sum()) == pytest.approx(1)
    assert torch.equal(weights[1:] / weights[:-1], torch.full((3,), 0.5))
