"""Neighboring rows whose attention is computed together, no wider than they need.

Attention is a rectangle: rows by new columns by entries.  One long row among short ones, or one of
many new columns, would make all others as large.  So rows are cut into segments, each computed for
itself, such that

    sum over segments of  rows * (most new columns, at least 4) * (most entries)  +  CALL

is least.  Four columns take the time of one: keys and values are read for either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CALL = 600
"""Cost of another call a layer, in entries that a column attends to: 25 microseconds of 0.04 (12 to
38 of 0.03 to 0.06 by rows and columns; one thread of a Zen 4, bfloat16, 9 heads on 3)."""
LEAST_COLUMNS = 4
MOST_ROWS = 32
"""Rows of a segment: it bounds the time in which segments are found."""


@dataclass(frozen=True)
class Segment:
    """Some neighboring rows of a forward."""

    rows: slice
    columns: slice
    """Their new columns, where those of all rows stand in one."""
    num_new: int
    """Most new columns of a row."""
    width: int
    """Most columns that a row attends to, new ones included."""


def segments_of(used: Sequence[int], sizes: Sequence[int]) -> list[Segment]:
    """The cheapest segments of rows with so many entries and new columns each."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    """Cost of the first rows, and where their last segment starts."""
    for stop in range(1, len(used) + 1):
        entries = columns = 0
        least: tuple[float, int] | None = None
        for start in range(stop - 1, max(-1, stop - 1 - MOST_ROWS), -1):
            entries, columns = max(entries, used[start]), max(columns, sizes[start])
            area = (stop - start) * max(columns, LEAST_COLUMNS) * (entries + columns)
            cost = best[start][0] + area + CALL
            if least is None or cost < least[0]:
                least = cost, start
        assert least is not None
        best.append(least)
    found, stop = [], len(used)
    while stop:
        start = best[stop][1]
        num_new = max(sizes[start:stop])
        columns_before = sum(sizes[:start])
        found.append(
            Segment(
                slice(start, stop),
                slice(columns_before, columns_before + sum(sizes[start:stop])),
                num_new,
                max(used[start:stop]) + num_new,
            )
        )
        stop = start
    return found[::-1]
