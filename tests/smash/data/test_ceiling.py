"""The oracle: what segmentation rules and ideal drafts allow at best."""

import pytest

from lightstride.smash.data.ceiling import PERFECT, ceilings, perfect_draft_lengths
from lightstride.smash.data.cutting import Segmentation


def test_ideal_drafts_are_held_back_by_length_and_vocabulary() -> None:
    answer = [1, 2, 3, 4, 5, 6, 7]
    assert perfect_draft_lengths(answer, 4, None) == [4, 3]
    assert perfect_draft_lengths(answer, 1, None) == [1] * 7
    assert perfect_draft_lengths(answer, 4, {1, 2, 4, 5, 6, 7}) == [2, 4, 1]
    assert perfect_draft_lengths(answer, 4, set()) == [1] * 7


def test_every_strategy_and_the_ideal() -> None:
    entropies = [[2.0, 0.01, 0.01, 0.01, 1.0, 0.9], [0.0, 3.0]]
    answers = [[1, 2, 3, 4, 5, 6], [7, 8]]
    found = ceilings(entropies, answers, vocab_size=100, max_segment=4)
    assert set(found) == {"small_group", "decreasing", "decreasing_v2", "sliding", PERFECT}
    lengths = [Segmentation().lengths(each, 100) for each in entropies]
    assert found["decreasing_v2"] == 8 / sum(map(len, lengths))
    assert found[PERFECT] == pytest.approx(8 / 3)
    assert ceilings(entropies, answers, vocab_size=100, max_segment=1) == dict.fromkeys(found, 1.0)
