"""Segmentation: the published rules by hand and by definition, and what holds for any input."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightstride.errors import ConfigError
from lightstride.smash.data.cutting import (
    Segmentation,
    cut_by_agreement,
    decreasing,
    decreasing_v2,
    draw_segmentation,
    entropy_bound,
    mean_segment_length,
    sliding,
    small_group,
)

entropies_lists = st.lists(st.floats(0, 8), max_size=40)
caps = st.integers(1, 8)


def test_published_thresholds() -> None:
    assert entropy_bound(0.95, 128256) == pytest.approx(0.787, abs=1e-3)
    assert entropy_bound(0.7, 128256) == pytest.approx(4.139, abs=1e-3)


def test_entropy_bound_is_the_entropy_of_the_flattest_distribution() -> None:
    probabilities = [0.6] + [0.4 / 9] * 9
    assert entropy_bound(0.6, 10) == pytest.approx(-sum(p * math.log(p) for p in probabilities))


def test_small_group_leaves_hard_tokens_alone() -> None:
    assert small_group([0.1, 0.2, 3.0, 0.1, 0.1, 0.1], 2, 0.5) == [2, 1, 2, 1]
    assert small_group([3.0, 0.1], 4, 0.5) == [1, 1]


def test_decreasing_compares_with_the_first_token() -> None:
    assert decreasing([2.0, 0.6, 0.7, 0.2, 0.3], 4) == [2, 2, 1]


def test_decreasing_v2_compares_with_the_largest() -> None:
    assert decreasing_v2([0.04, 0.049, 2.0, 0.5, 0.7, 0.1], 4) == [2, 2, 2]
    assert decreasing_v2([0.0] * 9, 4) == [4, 4, 1]


def test_sliding_joins_below_the_threshold() -> None:
    assert sliding([5.0, 1.0, 5.0, 1.0, 1.0], 4, 4.0) == [2, 3]


def published_decreasing_v2(entropies: list[float], cap: int) -> list[int]:
    """The published scan, as its formula table states it: start with n = 0 and m = -1."""
    lengths, count, largest = [], 0, -1.0
    for entropy in entropies:
        if (entropy < 0.05 or entropy < 0.3 * largest) and count < cap:
            count, largest = count + 1, max(largest, entropy)
        else:
            if count:
                lengths.append(count)
            count, largest = 1, entropy
    return lengths + ([count] if count else [])


@given(entropies_lists, caps)
def test_decreasing_v2_equals_the_published_scan(entropies: list[float], cap: int) -> None:
    assert decreasing_v2(entropies, cap) == published_decreasing_v2(entropies, cap)


@given(entropies_lists, caps, st.integers(0, 1000))
def test_every_rule_covers_the_sequence_within_the_cap(
    entropies: list[float], cap: int, seed: int
) -> None:
    segmentation = draw_segmentation(random.Random(seed), max_segment=cap)
    for rule in (segmentation, Segmentation(max_segment=cap, strategy="decreasing")):
        lengths = rule.lengths(entropies, 49152)
        assert sum(lengths) == len(entropies)
        assert all(1 <= length <= cap for length in lengths)


@given(entropies_lists, st.floats(0.1, 3), st.floats(0.1, 3))
def test_a_higher_threshold_never_needs_more_steps(
    entropies: list[float], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    cap = len(entropies) + 1
    assert len(sliding(entropies, cap, high)) <= len(sliding(entropies, cap, low))


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), max_size=30), caps)
def test_agreement_stops_at_the_first_wrong_draft(agrees: list[list[bool]], cap: int) -> None:
    lengths = cut_by_agreement(agrees, cap)
    assert sum(lengths) == len(agrees)
    start = 0
    for length in lengths:
        assert all(agrees[start][: length - 1])
        at_end = start + length == len(agrees)
        assert length == cap or at_end or not agrees[start][length - 1]
        start += length


def test_oracle_counts_tokens_over_steps() -> None:
    assert mean_segment_length([[2, 2], [1, 3, 1]]) == pytest.approx(9 / 5)


@pytest.mark.parametrize(
    "bad", [{"max_segment": 0}, {"confidence": 1.0}, {"strategy": "longest"}], ids=str
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Segmentation(**bad)  # type: ignore[arg-type]
