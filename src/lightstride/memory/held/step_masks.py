"""The mask of one new token a row, kept from step to step.

From one token to the next nothing changes but that there is one more entry, until windows move on.

Shapes: R rows, B rows of a forward, F heads of all layers, W columns.
"""

import math

import torch
from torch import Tensor

from lightstride.memory.entries import Places, room_for
from lightstride.memory.held.rules import Changes


class StepMasks:
    """What is added to the logits of one new token of each row."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.added_RFW = torch.zeros(0, 0, 0)
        """-inf at columns that are free."""
        self.until: list[int] = []
        """The first query of each row for which it is no longer right."""

    def forget(self, rows: slice) -> None:
        """Make those of these rows again."""
        self.until[rows] = [0] * len(self.until[rows])

    def fit(self, num_rows: int) -> None:
        """Have so many rows, of which nothing is known."""
        self.until = [0] * num_rows

    def next(self, queries: list[int], places: Places, width: int) -> Tensor | None:
        """That of queries whose entries are at these places, (B, F, 1, W); None: make it again."""
        rows = places.rows
        if len(self.added_RFW) != len(self.until) or width > self.added_RFW.shape[2]:
            return None
        if any(q >= end for q, end in zip(queries, self.until[rows], strict=True)):
            return None
        if places.start is None:
            self.added_RFW[places.rows_B1, :, places.slots_BQ] = 0
        else:
            self.added_RFW[rows, :, places.start] = 0
        return self.added_RFW[rows, :, None, :width]

    def made(self, queries: list[int], rows: slice, added_BF1W: Tensor) -> None:
        """Remember a mask that was made for queries."""
        added_BFW = added_BF1W[:, :, 0]
        num_rows, (_, num_heads, width) = len(self.until), added_BFW.shape
        if len(self.added_RFW) != num_rows or width > self.added_RFW.shape[2]:
            shape = num_rows, num_heads, room_for(width)
            self.added_RFW = added_BFW.new_full(shape, -math.inf)
            self.fit(num_rows)
        self.added_RFW[rows, :, :width] = added_BFW
        self.added_RFW[rows, :, width:] = -math.inf
        self.until[rows] = [self.changes.after(query) for query in queries]
