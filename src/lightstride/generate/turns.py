"""Whose prompt is read next: short ones together and soon, long ones chunk by chunk.

A prompt whose rest fits one chunk is read at once, with all others of its kind.  The row that
joined first has every other turn, so that it is never overtaken for ever; the turn after one of its
chunks belongs to whoever came meanwhile, so that a short prompt waits for one chunk at most.
"""

from collections.abc import Sequence

from lightstride.generate.rows import Row
from lightstride.generate.session import Limits

MOST_PADDED = 1.25
"""Columns of rows that are read together, for each token in them."""


class Turns:
    """The order in which rows that have not answered yet are read."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.is_firsts_turn = False

    def next(self, rows: Sequence[Row]) -> tuple[list[int], int]:
        """The rows to read on in, and most tokens of each."""
        first = min(range(len(rows)), key=lambda index: rows[index].number)
        short = self.short(rows)
        if short and (first in short or not self.is_firsts_turn):
            self.is_firsts_turn = first not in short
            return short, max(rows[index].left_to_read for index in short)
        self.is_firsts_turn = False
        return [first], min(rows[first].left_to_read, self.limits.chunk)

    def short(self, rows: Sequence[Row]) -> list[int]:
        """Rows that one chunk ends, the shortest first, as many as are read together.

        Rows are padded to the longest, so none joins that would leave more than a fifth empty.
        """
        found = sorted(
            (row.left_to_read, index)
            for index, row in enumerate(rows)
            if row.left_to_read <= self.limits.chunk
        )
        count, tokens = 0, 0
        for left, _ in found:
            tokens += left
            columns = (count + 1) * left
            if count and (columns > self.limits.together or columns > MOST_PADDED * tokens):
                break
            count += 1
        return [index for _, index in found[:count]]
