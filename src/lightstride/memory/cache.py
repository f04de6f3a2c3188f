"""A KV cache that holds what the memory plan lets each head keep.

While texts are short it holds all entries and masks what a head may not see (`held/whole.py`);
when more would be saved than that costs, those of heads that keep the same move to a buffer of
their own (`held/groups.py`).

Shapes: R rows, B rows of a forward, H query heads, G KV heads, Q new columns, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import check_readable, heads_of, sliding_of
from lightstride.memory.entries import KvType
from lightstride.memory.held.groups import Groups
from lightstride.memory.held.whole import Whole
from lightstride.memory.plan import MemoryPlan
from lightstride.memory.scores import Scores
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint

WHOLE = 512
"""Columns up to which all entries are held."""


@dataclass(frozen=True)
class Memory:
    """How a model's cache is kept: a plan, the type of its entries, and scores to choose by."""

    plan: MemoryPlan
    kind: KvType = "model"
    scores: Scores | None = None


class MemoryCache:
    """Entries of some rows: all of them while that costs little, then group by group."""

    def __init__(self, model: PreTrainedModel, memory: Memory) -> None:
        self.plan = memory.plan
        self.memory = memory
        self.device = model.device
        self.dtype = model.dtype
        self.sliding = sliding_of(model)
        self.held: Whole | Groups = self.empty()
        self.following: list[int] = []
        """Where each row's next query stands."""
        self.rows = slice(0, 0)
        self.positions_BQ = torch.zeros((0, 0), dtype=torch.long)

    def empty(self) -> Whole:
        """What holds the first entries."""
        memory = self.memory
        return Whole(memory.plan, memory.kind, memory.scores, self.sliding, self.device, self.dtype)

    @property
    def num_rows(self) -> int:
        return len(self.following)

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        self.following.append(0)
        self.held.add_row()

    def open(self, rows: slice, positions_BQ: Tensor, sees_BQQ: Tensor) -> None:
        """Make room in some rows for new columns, of which each sees some of the others."""
        self.rows = rows
        self.positions_BQ = positions_BQ.cpu()
        held, num_new = self.held, positions_BQ.shape[1]
        if isinstance(held, Whole) and held.columns_for(num_new) > WHOLE:
            self.held = self.grouped(held)
        self.held.open(rows, self.positions_BQ, sees_BQQ.cpu())

    def grouped(self, whole: Whole) -> Groups:
        """The same entries by groups of heads."""
        memory = self.memory
        groups = Groups(memory.plan, memory.kind, memory.scores, self.sliding, self.device)
        groups.take(whole.layout, whole.keys, whole.values, self.following)
        return groups

    def read(
        self, layer: int, query_BHQd: Tensor, key_BGQd: Tensor, value_BGQd: Tensor, scale: float
    ) -> Tensor:
        """Store a layer's new columns, and the outputs of its heads, shape (B, H, Q, d)."""
        assert len(self.plan.blocks[layer]) == key_BGQd.shape[1], "a plan for other heads"
        return self.held.read(layer, query_BHQd, key_BGQd, value_BGQd, scale)

    def settle(self, kept_BQ: Tensor) -> None:
        """Of the new columns those marked count; what is old for the queries after them goes."""
        kept_BQ = kept_BQ.cpu()
        dropped_BQ = None if bool(kept_BQ.all()) else ~kept_BQ
        places_BQ = self.positions_BQ
        if dropped_BQ is not None:
            places_BQ = places_BQ.masked_fill(dropped_BQ, -1)
        ends = (places_BQ.amax(1) + 1).tolist()
        following = [max(pair) for pair in zip(self.following[self.rows], ends, strict=True)]
        self.following[self.rows] = following
        self.held.settle(dropped_BQ, following)

    def pack(self) -> None:
        """Give back what buffers have too much, as after a long prompt."""
        self.held.pack()

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order; a row may come twice, as beams do."""
        self.following = [self.following[row] for row in rows]
        if self.following:
            self.held.select_rows(rows)
        else:
            self.held = self.empty()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return sum(
            part.numel() * part.element_size() for each in self.held.buffers for part in each.parts
        )

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of every head; 0 before the first forward."""
        return sum(each.entry_bytes for each in self.held.buffers)

    def entries_of(self, row: int) -> int:
        """Entries of a row that count, one a KV head and token."""
        return self.held.entries_of(row, self.following[row])

    @property
    def entries(self) -> list[int]:
        """Those of all rows."""
        return [self.entries_of(row) for row in range(self.num_rows)]


def full_plan(model: PreTrainedModel) -> MemoryPlan:
    """The plan of a model's full cache; ModelError where its attention cannot be split."""
    check_readable(model)
    head_dim = adapter_for(model.config).geometry(model.config).head_dim
    return MemoryPlan.full(heads_of(model), head_dim, fingerprint(model))
