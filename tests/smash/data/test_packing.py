"""Packing answers into rows, cutting them, and where drafts start."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.answered_toys import example, sharp_llama
from helpers.predictions import predict
from helpers.smash_toys import features, slot_batch, slow_opinion, toy
from lightstride.smash.data.packing import (
    draw_cut,
    make_batch,
    pack_documents,
    plan_batches,
)
from lightstride.smash.train.features import draft_features
from lightstride.smash.train.teacher_forced import find_starts, predict_drafts, tokens_at

BASE = sharp_llama()
ONE = example("one", [1, 2, 3], [7, 11, 65, 66], BASE)
TWO = example("two", [9], [150, 7, 7, 7, 11], BASE)
THREE = example("three", [4, 5], [7], BASE)
CUTS = [[2, 1, 1], [1, 3, 1], [1]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 50), st.integers(1, 4))
def test_packing_keeps_everything_once_and_within_the_budget(sizes, row_tokens, num_rows) -> None:
    batches = list(
        pack_documents(range(len(sizes)), sizes, row_tokens=row_tokens, num_rows=num_rows)
    )
    found = [document for batch in batches for row in batch for document in row]
    assert sorted(found) == list(range(len(sizes)))
    for row in itertools.chain.from_iterable(batches):
        assert sum(sizes[d] for d in row) <= row_tokens or len(row) == 1
    assert all(1 <= len(batch) <= num_rows for batch in batches)


def test_every_epoch_has_an_order_of_its_own() -> None:
    batches = plan_batches([10] * 12, row_tokens=20, num_rows=2, seed=3)
    epochs = [[d for b in itertools.islice(batches, 3) for r in b for d in r] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    again = plan_batches([10] * 12, row_tokens=20, num_rows=2, seed=3)
    assert [d for b in itertools.islice(again, 3) for r in b for d in r] == epochs[0]


def test_rows_apart_and_merged() -> None:
    batch = make_batch([[ONE, TWO], [THREE]])
    assert batch.tokens_BL.tolist()[0] == [1, 2, 3, 7, 11, 65, 66, 9, 150, 7, 7, 7, 11]
    assert batch.num_answer_tokens == 10
    unmerged = batch.unmerged()
    assert unmerged.lengths_BS.tolist() == [[1] * 13, [1] * 3 + [0] * 10]
    ends = [[2, 3, 4, 5, 7, 8, 9, 10, 11], [1]]
    assert [row.nonzero()[:, 0].tolist() for row in unmerged.predicts_BS] == ends
    merged = batch.cut_into(CUTS)
    assert merged.lengths_BS.tolist() == [[1, 1, 1, 2, 1, 1, 1, 1, 3, 1], [1, 1, 1] + [0] * 7]
    assert merged.documents_BS.tolist() == [[0] * 6 + [1] * 4, [0] * 3 + [2] * 7]
    ends = [[2, 3, 4, 6, 7, 8], [1]]
    assert [row.nonzero()[:, 0].tolist() for row in merged.predicts_BS] == ends


def test_drafts_start_at_every_slot_and_end_with_their_document() -> None:
    batch = make_batch([[ONE, TWO], [THREE]])
    starts = find_starts(batch.cut_into(CUTS), batch.documents_BL, 3)
    tokens_NK = tokens_at(batch.tokens_BL, starts)
    found = [
        tokens[valid].tolist() for tokens, valid in zip(tokens_NK, starts.valid_NK, strict=True)
    ]
    assert found == [[7, 11, 65], [65, 66], [66], [150, 7, 7], [7, 7, 7], [11], [7]]


@pytest.mark.parametrize("merged", [False, True])
def test_drafts_are_those_of_one_answer_at_a_time(merged: bool) -> None:
    model = toy(BASE)
    batch = make_batch([[ONE, TWO], [THREE]])
    cuts = CUTS if merged else [[1] * len(d.answer_A) for d in (ONE, TWO, THREE)]
    slots = batch.cut_into(cuts) if merged else batch.unmerged()
    with torch.no_grad():
        taps = model.read_packed(slots)
        starts = find_starts(slots, batch.documents_BL, 4)
        drafts = predict_drafts(model, taps, starts, tokens_at(batch.tokens_BL, starts))
    index = 0
    for document, cut in zip((ONE, TWO, THREE), cuts, strict=True):
        answer = document.answer_A.tolist()
        edges = [0, *itertools.accumulate(cut)]
        segments = [answer[a:b] for a, b in itertools.pairwise(edges)]
        for number, edge in enumerate(edges[:-1]):
            taps_1TD = features(model, document.prompt_P.tolist(), segments[:number])
            torch.testing.assert_close(drafts.vectors_NKD[index, 0], taps_1TD[0, -1])
            following = answer[edge : edge + 4]
            for count in range(1, len(following)):
                with torch.no_grad():
                    fed = model.embed(torch.tensor([following[:count]]))
                    vector, _ = model.micro(torch.cat([taps_1TD, fed], dim=1), None)
                torch.testing.assert_close(
                    drafts.vectors_NKD[index, count], vector[0, -1], atol=1e-5, rtol=1e-5
                )
            index += 1
    assert index == len(drafts.vectors_NKD)


@pytest.mark.parametrize("merged", [False, True])
def test_evidence_is_what_a_search_finds_before_each_place(merged: bool) -> None:
    model = toy(BASE)
    long = torch.tensor([7, 11, 7, 11, 7, 7, 11, 65, 7, 11])
    again = replace(ONE, answer_A=long, greedy_A=long, entropy_A=torch.zeros(len(long)))
    batch = make_batch([[TWO, again], [THREE]])
    cuts = [[2, 1, 2], [3, 1, 2, 1, 3], CUTS[2]]
    assert [sum(cut) for cut in cuts] == [len(d.answer_A) for d in (TWO, again, THREE)]
    slots = batch.cut_into(cuts) if merged else batch.unmerged()
    with torch.no_grad():
        starts = find_starts(slots, batch.documents_BL, 4)
        taps = model.read_packed(slots)
        drafts = predict_drafts(model, taps, starts, tokens_at(batch.tokens_BL, starts))
    said, told = draft_features(model, batch, drafts)
    texts = [
        [d.prompt_P.tolist(), d.answer_A.tolist(), cut if merged else [1] * len(d.answer_A)]
        for d, cut in zip((TWO, again, THREE), cuts, strict=True)
    ]
    expected = []
    for prompt, answer, cut in texts:
        for edge in [0, *itertools.accumulate(cut)][:-1]:
            text, following = [*prompt, *answer[: edge + 1]], answer[edge + 1 :]
            tokens = said[len(expected)].tolist()
            expected.append(
                [
                    slow_opinion(text, following[:k], token) if k <= len(following) else None
                    for k, token in enumerate(tokens)
                ]
            )
    assert len(expected) == len(said)
    found = told[..., 2].tolist()
    for row, wanted in zip(found, expected, strict=True):
        assert [v for v, w in zip(row, wanted, strict=True) if w is not None] == pytest.approx(
            [w for w in wanted if w is not None]
        )
    assert len({w for row in expected for w in row}) > 3


def test_teacher_forced_segments_are_what_the_body_predicts() -> None:
    """The drafts of a batch hold what `predict` says of its segments."""
    model = toy(BASE)
    batch = make_batch([[ONE]])
    with torch.no_grad():
        expected = predict(model, slot_batch([1, 2, 3], [[7, 11], [65], [66]]))
        slots = batch.cut_into([[2, 1, 1]])
        starts = find_starts(slots, batch.documents_BL, 4)
        drafts = predict_drafts(
            model, model.read_packed(slots), starts, tokens_at(batch.tokens_BL, starts)
        )
    torch.testing.assert_close(drafts.vectors_NKD[:, 0], expected.first_ND)
    torch.testing.assert_close(drafts.vectors_NKD[:1, 1], expected.later_JD)


def test_lengths_are_drawn_alike_from_the_same_seed() -> None:
    options = {"max_segment": 4, "vocab_size": 260}
    easy = replace(TWO, entropy_A=torch.tensor([3.0, 0.1, 2.0, 0.0, 0.2]))
    drawn = [draw_cut(easy, random.Random(seed), **options) for seed in (1, 1, 2, 3, 4, 5)]
    assert drawn[0] == drawn[1]
    assert all(sum(lengths) == 5 for lengths in drawn)
    assert len({tuple(lengths) for lengths in drawn}) > 1
