"""Whose prompt is read next: short ones together and soon, long ones chunk by chunk.

A prompt whose rest fits one chunk is read at once, with all others of its kind.  The row that
joined first has every other turn, so that it is never overtaken for ever; the turn after one of its
chunks belongs to whoever came meanwhile and has at most half as much to read, so that a prompt
waits for one chunk of a longer one before each of its own.  Prompts of about one length are read
one after the other: what they share need not be read twice.

Where nobody would have to wait for it, chunks are longer: such a turn gives way to whoever comes
while it lasts.  What was read by then is lost, so a row that gave way reads a short chunk next,
which it is left to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lightstride.generate.rows import Row
from lightstride.generate.session import Limits

MOST_PADDED = 1.25
"""Columns of rows that are read together, for each token in them."""


@dataclass(frozen=True)
class Turn:
    """Rows that are read together."""

    members: list[int]
    width: int
    """Most tokens of each."""
    gives_way: bool = False
    """Whether it is given up for those who come while it lasts."""


class Turns:
    """The order in which rows that have not answered yet are read."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.is_firsts_turn = False

    def next(self, rows: Sequence[Row], *, may_be_long: bool = False) -> Turn:
        """The rows to read on in; `may_be_long` where a turn can be given up."""
        first = min(range(len(rows)), key=lambda index: rows[index].number)
        short = self.short(rows)
        shortest = min(range(len(rows)), key=lambda index: rows[index].left_to_read)
        overtakes = bool(short) or rows[shortest].left_to_read <= rows[first].left_to_read / 2
        is_others_turn = first not in short and overtakes and not self.is_firsts_turn
        self.is_firsts_turn = is_others_turn
        if first in short or (short and is_others_turn):
            return Turn(short, max(rows[index].left_to_read for index in short))
        index = shortest if is_others_turn else first
        row = rows[index]
        is_long = may_be_long and not row.gave_way
        most = self.limits.long_chunk if is_long else self.limits.chunk
        return Turn([index], min(row.left_to_read, most), is_long)

    def give_way(self, row: Row) -> None:
        """Hear that a turn was given up: the next one is not the first row's."""
        row.gave_way = True
        self.is_firsts_turn = False

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
