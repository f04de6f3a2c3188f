"""The smashed model called with tokens, and with merged segments."""

import pytest
import torch

from helpers.agree import assert_close_logits
from helpers.predictions import predict
from helpers.smash_toys import BASES, features, slot_batch, toy
from helpers.toys import TINY
from lightstride.smash.model import reading
from lightstride.smash.model.body import IGNORED, choose_vocabulary
from lightstride.smash.model.slots import SlotBatch

TOKENS = list(range(60, 80))


@pytest.mark.parametrize("family", TINY)
def test_called_with_tokens_it_is_the_base(family: str) -> None:
    model = toy(TINY[family]())
    ids = torch.randint(0, 256, (2, 9))
    output = model(ids, labels=ids)
    expected = model.base(ids, labels=ids)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    assert_close_logits(model(ids, logits_to_keep=2).logits, expected.logits[:, -2:])


@pytest.mark.parametrize("family", TINY)
def test_without_merging_segments_predict_what_the_base_does(family: str) -> None:
    model = toy(TINY[family]())
    batch = slot_batch(TOKENS[:1], [[token] for token in TOKENS[1:]])
    with torch.no_grad():
        logits = model.base_logits(predict(model, batch).first_ND)
    expected = model.base(torch.tensor([TOKENS])).logits[0, :-1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_predictions_are_those_of_one_segment_at_a_time() -> None:
    model = toy(micro_vocabulary=range(0, 256, 2))
    segments = [[7, 11], [65], [66, 150, 7, 7], [65, 65, 11], [7]]
    with torch.no_grad():
        found = predict(model, slot_batch([1, 2, 3], segments))
        place = 0
        for index, segment in enumerate(segments):
            taps = features(model, [1, 2, 3], segments[:index])
            torch.testing.assert_close(found.first_ND[index], taps[0, -1])
            for count in range(1, len(segment)):
                vector, _ = model.micro(
                    torch.cat([taps, model.embed(torch.tensor([segment[:count]]))], dim=1), None
                )
                torch.testing.assert_close(found.later_JD[place], vector[0, -1])
                assert int(found.later_tokens_J[place]) == segment[count]
                assert bool(found.later_is_last_J[place]) == (count + 1 == len(segment))
                assert int(found.later_segment_J[place]) == index
                assert int(found.later_place_J[place]) == count
                place += 1
    assert place == len(found.later_JD)
    assert found.first_tokens_N.tolist() == [segment[0] for segment in segments]
    assert found.first_is_last_N.tolist() == [len(segment) == 1 for segment in segments]


def test_segments_of_one_alone_need_no_micro_step() -> None:
    model = toy()
    found = predict(model, slot_batch([1, 2], [[7], [11]]))
    assert found.later_JD.shape == (0, 32)
    assert found.first_is_last_N.all()


@pytest.mark.parametrize("base", BASES)
def test_packed_and_padded_rows_are_rows_alone(base: str) -> None:
    model = toy(BASES[base]())
    rows = [([1, 2, 3], [[7, 11], [65]]), ([9], [[66, 150, 7], [11, 11], [65]])]
    alone = [predict(model, slot_batch(prompt, segments)) for prompt, segments in rows]
    expected_first = torch.cat([found.first_ND for found in alone])
    expected_later = torch.cat([found.later_JD for found in alone])
    one, two = (slot_batch(prompt, segments) for prompt, segments in rows)
    numbers = [torch.full_like(row.lengths_BS, i) for i, row in enumerate((one, two))]
    packed = SlotBatch(
        torch.cat([one.tokens_BL, two.tokens_BL], dim=1),
        torch.cat([one.lengths_BS, two.lengths_BS], dim=1),
        torch.cat([one.predicts_BS, two.predicts_BS], dim=1),
        torch.cat(numbers, dim=1),
    )
    padded = SlotBatch(*(stack(getattr(one, n), getattr(two, n)) for n in FIELDS))
    for batch in (packed, padded):
        found = predict(model, batch)
        torch.testing.assert_close(found.first_ND, expected_first, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.later_JD, expected_later, atol=1e-5, rtol=1e-5)


FIELDS = ("tokens_BL", "lengths_BS", "predicts_BS")


def stack(*rows: torch.Tensor) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
    return torch.cat(padded)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_position_jumps_do_not_cut_attention(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged slots reach back to the prompt; without our mask transformers would cut them off."""
    model = toy()
    model.base.set_attn_implementation(attention)
    segments = [[7, 11, 65], [66, 7], [11, 150, 7, 7], [65]]

    def reaches_the_prompt() -> bool:
        last = [features(model, [first, 2, 3], segments)[0, -1] for first in (1, 100)]
        return bool((last[0] - last[1]).abs().max() > 1e-5)

    assert reaches_the_prompt()
    monkeypatch.setattr(reading, "attention_argument", lambda *_: None)
    assert not reaches_the_prompt()


def test_only_grafts_learn() -> None:
    model = toy()
    found = predict(model, slot_batch([1, 2, 3], [[7, 11], [65, 66, 7], [11]]))
    loss = model.base_logits(found.first_ND).sum() + model.micro_logits(found.later_JD).sum()
    loss = loss + model.stop_logits(found.first_ND).sum() + model.stop_logits(found.later_JD).sum()
    loss.backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    without = [
        name
        for name, parameter in model.named_parameters()
        if not name.startswith("base.") and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []


def test_the_micro_vocabulary_maps_there_and_back() -> None:
    model = toy(micro_vocabulary=[3, 7, 200])
    assert model.vocabulary_ids(torch.tensor([0, 1, 2])).tolist() == [3, 7, 200]
    assert model.micro_ids(torch.tensor([200, 4, 3])).tolist() == [2, IGNORED, 0]
    vectors = torch.randn(5, 32)
    whole = model.base.get_output_embeddings()(vectors)
    torch.testing.assert_close(model.micro_logits(vectors), whole[:, [3, 7, 200]])
    counts = torch.tensor([5, 0, 9, 9, 1, 0])
    assert choose_vocabulary(counts, 3, always=[5]).tolist() == [2, 3, 5]
    assert choose_vocabulary(torch.zeros(6), 3, always=[]).tolist() == [0, 1, 2]
