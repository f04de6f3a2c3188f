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
from lightstride.smash.train.loop import means
from lightstride.smash.train.loss import (
    LossWeights,
    SmashLoss,
    draft_loss,
    place_weights,
    tokens_of_drafts,
)
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


def merged_batch(first_weight: float):
    """A toy, and its losses of a batch that is also read merged, in segments of two."""
    model = toy(sharp_llama(), num_layers=1)
    learner = SmashLoss(model, LossWeights(first_weight=first_weight), None, None)
    learner.cut = lambda batch, *_, own: [
        [min(2, len(d.answer_A) - at) for at in range(0, len(d.answer_A), 2)]
        for row in batch.rows
        for d in row
    ]
    batch = make_batch([EXAMPLES[2:4]])
    return model, batch, learner(batch, True, False, "0")


def test_drafts_do_not_shape_what_they_are_drafted_from() -> None:
    for first_weight, moves in ((0.0, False), (1.0, True)):
        model, _, stats = merged_batch(first_weight)
        stats["loss"].backward()
        gradients = [parameter.grad for parameter in model.embedder.parameters()]
        assert any(each is not None and bool(each.any()) for each in gradients) == moves
        assert model.stop.weight.grad is not None


def test_predictions_after_merged_histories_count_as_often_as_tokens() -> None:
    _, batch, stats = merged_batch(1.0)
    slots = sum((len(d.answer_A) + 1) // 2 for row in batch.rows for d in row)
    assert int(stats["firsts"]) == slots < batch.num_answer_tokens
    without = merged_batch(0.0)[2]
    added = float((stats["loss"] - without["loss"]).detach())
    expected = float(stats["first"]) / slots * batch.num_answer_tokens
    assert added == pytest.approx(expected, rel=1e-4)
    found = means({name: stats[name].detach() for name in ("loss", "first", "firsts")}, 10)
    assert found["first"] == pytest.approx(float(stats["first"]) / slots)
    assert found["loss"] == pytest.approx(float(stats["loss"].detach()) / 10)


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
