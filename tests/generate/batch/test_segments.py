"""Segments of rows: the cheapest cut, against all cuts."""

import itertools
import random
from collections.abc import Sequence

import pytest

from lightstride.generate.batch.segments import CALL, LEAST_COLUMNS, Segment, segments_of


def cost(used: Sequence[int], sizes: Sequence[int], bounds: Sequence[int]) -> int:
    """Cost of the segments between these bounds."""
    total = 0
    for start, stop in itertools.pairwise(bounds):
        most, new = max(used[start:stop]), max(sizes[start:stop])
        total += (stop - start) * max(new, LEAST_COLUMNS) * (most + new) + CALL
    return total


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_is_cheaper(seed: int) -> None:
    rng = random.Random(seed)
    used = [rng.choice((20, 150, 1200)) for _ in range(7)]
    sizes = [rng.choice((1, 2, 30)) for _ in used]
    found = segments_of(used, sizes)
    bounds = [0, *(each.rows.stop for each in found)]
    inner = range(1, len(used))
    cuts = [[0, *c, len(used)] for n in range(7) for c in itertools.combinations(inner, n)]
    assert cost(used, sizes, bounds) == min(cost(used, sizes, each) for each in cuts)
    for each in found:
        assert each.num_new == max(sizes[each.rows])
        assert each.width == max(used[each.rows]) + each.num_new
        assert each.columns == slice(sum(sizes[: each.rows.start]), sum(sizes[: each.rows.stop]))


def test_one_long_row_stands_alone() -> None:
    found = segments_of([100] * 3 + [1200] + [90] * 4, [1] * 8)
    assert [each.rows for each in found] == [slice(0, 3), slice(3, 4), slice(4, 8)]
    assert [each.width for each in found] == [101, 1201, 91]


def test_rows_alike_are_one_segment() -> None:
    assert segments_of([50, 60], [2, 2]) == [Segment(slice(0, 2), slice(0, 4), 2, 62)]
