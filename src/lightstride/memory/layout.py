"""Which column of a buffer holds which position, for all heads that keep the same.

A column is free or holds an entry.  New entries go into free columns, the lowest first, so nothing
is ever moved: rejected drafts and tokens that have become old only free their columns.  What a
query sees is asked of positions, not of columns.

Where heads choose by scores, each moves what it chose of a chunk to the columns of those that
would stay otherwise, when the chunk becomes old; so one layout serves heads that choose
differently.  Queries of one forward for which more is old than was moved are told so (`chunks`).

Shapes: R rows, B rows of a forward, Q new columns, W columns, N chunks; of a chunk W = 16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightstride.memory.masks import stays, visible, weighed
from lightstride.memory.plan import CHUNK, Keep
from lightstride.memory.scores import chooses

FREE = -1


@dataclass(frozen=True)
class Chunks:
    """Chunks of some rows that become old, N of them, and where their entries are.

    Where tokens were merged a place may have none; then it stands for another, so that whatever is
    done to that is done twice.
    """

    rows_N1: Tensor
    columns_NW: Tensor
    positions_NW: Tensor
    there_NW: Tensor
    """Whether a place has an entry of its own."""
    stands_for_NW: Tensor
    """The place in its chunk that each stands for: itself, if it has an entry."""

    def to(self, device: torch.device) -> "Chunks":
        """The same on a device."""
        return Chunks(*(getattr(self, field.name).to(device) for field in fields(self)))


class Layout:
    """Columns of some rows; all rows have `width` of them."""

    def __init__(self, keep: Keep, sinks: int, sliding: int | None) -> None:
        self.keep = keep
        self.sinks = sinks
        self.sliding = sliding
        self.position_RW = torch.full((0, 0), FREE)
        self.free: list[list[int]] = []
        """Free columns of each row, ascending."""
        self.border: list[int] = []
        """What each row has smashed up to."""
        self.slots_BQ = torch.zeros((0, 0), dtype=torch.long)
        self.chooses = chooses(keep, sliding)

    @property
    def width(self) -> int:
        """Columns that a forward attends to."""
        return self.position_RW.shape[1]

    def reserve(self, rows: slice, positions_BQ: Tensor) -> Tensor:
        """Columns for new entries at these positions, shape (B, Q); scratch until settled."""
        num_new = positions_BQ.shape[1]
        short = max(num_new - len(free) for free in self.free[rows])
        if short > 0:
            self.widen(self.width + short)
        self.slots_BQ = torch.tensor([free[:num_new] for free in self.free[rows]])
        for free in self.free[rows]:
            del free[:num_new]
        self.position_RW[rows].scatter_(1, self.slots_BQ, positions_BQ)
        return self.slots_BQ

    def widen(self, width: int) -> None:
        """Add free columns up to this width."""
        for free in self.free:
            free.extend(range(self.width, width))
        more = width - self.width
        self.position_RW = torch.nn.functional.pad(self.position_RW, (0, more), value=FREE)

    def mask(self, rows: slice, queries_BQ: Tensor, sees_BQQ: Tensor) -> Tensor | None:
        """What each new column sees, (B, Q, W), as `weighed` says it; None: all, each as one."""
        num_new, last = queries_BQ.shape[1], queries_BQ[:, -1].tolist()
        weighs = self.keep.weight > 1 and any(map(self.keep.border, last))
        if num_new == 1 and not weighs and not any(self.free[rows]) and self.is_tidy(rows, last):
            return None
        position_BW = self.position_RW[rows]
        seen_BQW = visible(self.keep, queries_BQ, position_BW, self.sinks, self.sliding)
        seen_BQW &= self.there(rows, sees_BQQ)
        return weighed(self.keep, queries_BQ, position_BW, self.sinks, seen_BQW)

    def is_tidy(self, rows: slice, queries: Sequence[int]) -> bool:
        """Whether all that is old for these queries is gone: not where a merged one has skipped
        positions."""
        if any(self.keep.border(q) != b for q, b in zip(queries, self.border[rows], strict=True)):
            return False
        if self.sliding is None:
            return True
        oldest_B1 = torch.tensor(queries)[:, None] - self.sliding
        return not bool((self.position_RW[rows] <= oldest_B1).any())

    def there(self, rows: slice, sees_BQQ: Tensor) -> Tensor:
        """Which columns hold what each new one may see if it is kept, (B, Q, W)."""
        num_new = sees_BQQ.shape[1]
        is_old_BW = (self.position_RW[rows] != FREE).scatter(1, self.slots_BQ, False)
        index_BQQ = self.slots_BQ[:, None].expand(-1, num_new, -1)
        return is_old_BW[:, None].expand(-1, num_new, -1).scatter(2, index_BQQ, sees_BQQ)

    def chunks(self, rows: slice, borders: Sequence[int], there_BW: Tensor) -> Chunks | None:
        """What becomes old at these borders of the rows; entries are those marked as there."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for index, border in enumerate(borders):
            row = rows.start + index
            before = self.border[row]
            if border <= before:
                continue
            columns_M = there_BW[index].nonzero()[:, 0]
            column_of = torch.full((int(self.position_RW[row].max()) + 1,), FREE)
            column_of[self.position_RW[row, columns_M]] = columns_M
            positions = torch.arange(before, border).view(-1, CHUNK)
            columns = column_of[positions]
            full = (columns != FREE).any(-1)
            found.append((torch.full((int(full.sum()), 1), row), columns[full], positions[full]))
        if not sum(len(columns) for _, columns, _ in found):
            return None
        rows_N1, columns_NW, positions_NW = map(torch.cat, zip(*found, strict=True))
        there_NW = columns_NW != FREE
        first_N1 = there_NW.to(torch.int8).argmax(-1, keepdim=True)
        stands_for_NW = torch.where(there_NW, torch.arange(CHUNK), first_N1)
        columns_NW = columns_NW.gather(1, stands_for_NW)
        return Chunks(rows_N1, columns_NW, positions_NW, there_NW, stands_for_NW)

    def drop(self, rows: slice, dropped_BQ: Tensor) -> None:
        """Of the new columns those marked go."""
        dropped_N, places_N = dropped_BQ.nonzero(as_tuple=True)
        self.release(dropped_N + rows.start, self.slots_BQ[dropped_N, places_N])

    def forget(self, rows: slice, following: Sequence[int]) -> None:
        """What is old for the next queries goes."""
        borders = [self.keep.border(query) for query in following]
        if borders == self.border[rows] and self.sliding is None:
            return
        self.border[rows] = borders
        position_BW = self.position_RW[rows]
        gone_BW = position_BW < torch.tensor(borders)[:, None]
        gone_BW &= ~stays(self.keep, position_BW, self.sinks)
        if self.sliding is not None:
            gone_BW |= position_BW <= torch.tensor(following)[:, None] - self.sliding
        gone_N, columns_N = (gone_BW & (position_BW != FREE)).nonzero(as_tuple=True)
        self.release(gone_N + rows.start, columns_N)

    def release(self, rows_N: Tensor, columns_N: Tensor) -> None:
        """Free these columns of these rows."""
        self.position_RW[rows_N, columns_N] = FREE
        touched = rows_N.tolist()
        for row, column in zip(touched, columns_N.tolist(), strict=True):
            self.free[row].append(column)
        for row in set(touched):
            self.free[row].sort()

    def pack(self) -> Tensor:
        """Move all entries to the front; what comes back is where each column comes from.

        Shape (R, W) of the new, smaller width; columns behind a row's entries are free.
        """
        held_RW = self.position_RW != FREE
        counts = self.counts
        width = max(counts, default=0)
        order_RW = (~held_RW).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        self.position_RW = self.position_RW.gather(1, order_RW)
        self.free = [list(range(count, width)) for count in counts]
        return order_RW

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        fresh_1W = torch.full((1, self.width), FREE)
        self.position_RW = torch.cat([self.position_RW, fresh_1W])
        self.free.append(list(range(self.width)))
        self.border.append(0)

    def copy(self, other: "Layout") -> None:
        """Hold what another layout holds, nothing of it smashed."""
        self.position_RW = other.position_RW.clone()
        self.free = [list(free) for free in other.free]
        self.border = [0] * len(self.free)

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order; a row may come twice."""
        self.position_RW = self.position_RW[list(rows)]
        self.free = [list(self.free[row]) for row in rows]
        self.border = [self.border[row] for row in rows]

    @property
    def counts(self) -> list[int]:
        """Entries that each row holds."""
        return [self.width - len(free) for free in self.free]
