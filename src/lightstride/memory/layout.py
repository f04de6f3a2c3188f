"""Which column of a buffer holds which position, for all heads that keep the same.

A column is free or holds an entry.  New entries go into free columns, the lowest first, so nothing
is ever moved: rejected drafts and tokens that have become old only free their columns.  What a
query sees is asked of positions, not of columns.

Shapes: B rows, Q new columns, W columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.memory.masks import stays, visible
from lightstride.memory.plan import Keep

FREE = -1


class Layout:
    """Columns of some rows; `width` of them are, or have been, in use."""

    def __init__(self, keep: Keep, sinks: int, sliding: int | None, num_rows: int) -> None:
        self.keep = keep
        self.sinks = sinks
        self.sliding = sliding
        self.position_BW = torch.full((num_rows, 0), FREE)
        self.free: list[list[int]] = [[] for _ in range(num_rows)]
        """Free columns of each row, ascending."""
        self.border = [0] * num_rows
        self.slots_BQ = torch.zeros((num_rows, 0), dtype=torch.long)

    @property
    def width(self) -> int:
        """Columns that a forward attends to."""
        return self.position_BW.shape[1]

    def reserve(self, positions_BQ: Tensor) -> Tensor:
        """Columns for new entries at these positions, shape (B, Q); scratch until settled."""
        num_new = positions_BQ.shape[1]
        short = max(num_new - len(free) for free in self.free)
        if short > 0:
            self.widen(self.width + short)
        self.slots_BQ = torch.tensor([free[:num_new] for free in self.free])
        for free in self.free:
            del free[:num_new]
        self.position_BW.scatter_(1, self.slots_BQ, positions_BQ)
        return self.slots_BQ

    def widen(self, width: int) -> None:
        """Add free columns up to this width."""
        more = width - self.width
        fresh = torch.full((len(self.free), more), FREE)
        for free in self.free:
            free.extend(range(self.width, width))
        self.position_BW = torch.cat([self.position_BW, fresh], dim=1)

    def mask(self, queries_BQ: Tensor, sees_BQQ: Tensor) -> Tensor | None:
        """Which columns each new one sees, shape (B, Q, W); None where it is all of them."""
        num_new = queries_BQ.shape[1]
        if num_new == 1 and not any(self.free):
            return None
        seen_BQW = visible(self.keep, queries_BQ, self.position_BW, self.sinks, self.sliding)
        is_old_BW = (self.position_BW != FREE).scatter(1, self.slots_BQ, False)
        index_BQQ = self.slots_BQ[:, None].expand(-1, num_new, -1)
        there_BQW = is_old_BW[:, None].expand(-1, num_new, -1).scatter(2, index_BQQ, sees_BQQ)
        return seen_BQW & there_BQW

    def settle(self, kept_BQ: Tensor, following: Sequence[int]) -> None:
        """Of the new columns those marked stay; then what is old for the next queries goes."""
        if not bool(kept_BQ.all()):
            self.release(*(~kept_BQ).nonzero(as_tuple=True), columns_BQ=self.slots_BQ)
        self.slots_BQ = self.slots_BQ[:, :0]
        borders = [self.keep.border(query) for query in following]
        if borders == self.border and self.sliding is None:
            return
        self.border = borders
        gone_BW = self.position_BW < torch.tensor(borders)[:, None]
        gone_BW &= ~stays(self.keep, self.position_BW, self.sinks)
        if self.sliding is not None:
            gone_BW |= self.position_BW <= torch.tensor(following)[:, None] - self.sliding
        self.release(*(gone_BW & (self.position_BW != FREE)).nonzero(as_tuple=True))

    def release(self, rows_N: Tensor, columns_N: Tensor, columns_BQ: Tensor | None = None) -> None:
        """Free these columns of these rows; with `columns_BQ`, columns are looked up there."""
        if columns_BQ is not None:
            columns_N = columns_BQ[rows_N, columns_N]
        self.position_BW[rows_N, columns_N] = FREE
        touched = set()
        for row, column in zip(rows_N.tolist(), columns_N.tolist(), strict=True):
            self.free[row].append(column)
            touched.add(row)
        for row in touched:
            self.free[row].sort()

    def pack(self) -> Tensor:
        """Move all entries to the front; what comes back is where each column comes from.

        Shape (B, W) of the new, smaller width; columns behind a row's entries are free.
        """
        held_BW = self.position_BW != FREE
        counts = held_BW.sum(1).tolist()
        width = max(counts, default=0)
        order_BW = (~held_BW).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        self.position_BW = self.position_BW.gather(1, order_BW)
        self.free = [list(range(count, width)) for count in counts]
        return order_BW

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order."""
        self.position_BW = self.position_BW[list(rows)]
        self.free = [list(self.free[row]) for row in rows]
        self.border = [self.border[row] for row in rows]
        self.slots_BQ = self.slots_BQ[list(rows)]

    def join(self, other: "Layout") -> None:
        """Add the rows of another layout behind these."""
        width = max(self.width, other.width)
        for layout in (self, other):
            if layout.width < width:
                layout.widen(width)
        self.position_BW = torch.cat([self.position_BW, other.position_BW])
        self.slots_BQ = torch.zeros((len(self.position_BW), 0), dtype=torch.long)
        self.free = [*self.free, *other.free]
        self.border = [*self.border, *other.border]

    @property
    def counts(self) -> list[int]:
        """Entries that each row holds."""
        return [self.width - len(free) for free in self.free]
