"""A KV cache that holds, for every group of heads, what the memory plan lets them keep.

The heads of a block that keep the same share one buffer.  A forward writes its new columns into
free ones of every buffer and attends group by group; `settle` says which of them count, and what
has become old is smashed: its columns are free for what comes next.  Buffers grow by chunks, so a
head that keeps little never has room for more.

Shapes: R rows, B rows of a forward, H query heads, G KV heads, Q new columns, W columns, d
head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import (
    attend,
    check_readable,
    group_slices,
    heads_of,
    sliding_of,
)
from lightstride.memory.entries import Entries, KvType
from lightstride.memory.layout import Layout
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint

ROOM = 64
"""Columns by which a buffer grows."""
Rule = tuple[Keep, int | None]
"""What heads keep, and the model's own window of their layer."""


@dataclass(frozen=True)
class Group:
    """Heads of one layer that keep the same."""

    rule: Rule
    kv_G: Tensor
    query_H: Tensor
    whole: bool
    """Whether they are all heads of the layer."""


@dataclass(frozen=True)
class Memory:
    """How a model's cache is kept: a plan, and the type of its entries."""

    plan: MemoryPlan
    kind: KvType = "model"


class MemoryCache:
    """Entries of some rows, by layer and group of heads."""

    def __init__(self, model: PreTrainedModel, plan: MemoryPlan, kind: KvType = "model") -> None:
        self.plan = plan
        self.kind: KvType = kind
        self.device = model.device
        self.sliding = sliding_of(model)
        rules = dict.fromkeys(
            (keep, self.sliding[layer]) for layer, keeps in enumerate(plan.blocks) for keep in keeps
        )
        self.layouts = {rule: Layout(rule[0], plan.sinks, rule[1]) for rule in rules}
        self.groups: dict[int, list[Group]] = {}
        self.keys: dict[tuple[int, Rule], Entries] = {}
        self.values: dict[tuple[int, Rule], Entries] = {}
        self.following: list[int] = []
        """Where each row's next query stands."""
        self.rows = slice(0, 0)
        self.rows_B1 = torch.zeros((0, 1), dtype=torch.long)
        self.positions_BQ = torch.zeros((0, 0), dtype=torch.long)
        self.masks: dict[Rule, Tensor | None] = {}
        self.slots: dict[Rule, Tensor] = {}

    @property
    def num_rows(self) -> int:
        return len(self.following)

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        self.following.append(0)
        for layout in self.layouts.values():
            layout.add_row()

    def open(self, rows: slice, positions_BQ: Tensor, sees_BQQ: Tensor) -> None:
        """Make room in some rows for new columns, of which each sees some of the others."""
        self.rows = rows
        self.rows_B1 = torch.arange(rows.start, rows.stop, device=self.device)[:, None]
        self.positions_BQ = positions_BQ.cpu()
        sees_BQQ = sees_BQQ.cpu()
        for rule, layout in self.layouts.items():
            self.slots[rule] = layout.reserve(rows, self.positions_BQ).to(self.device)
            mask = layout.mask(rows, self.positions_BQ, sees_BQQ)
            self.masks[rule] = None if mask is None else mask.to(self.device)

    def read(
        self, layer: int, query_BHQd: Tensor, key_BGQd: Tensor, value_BGQd: Tensor, scale: float
    ) -> Tensor:
        """Store a layer's new columns, and the outputs of its heads, shape (B, H, Q, d)."""
        groups = self.groups.get(layer)
        if groups is None:
            groups = self.groups[layer] = self.grouped(layer, query_BHQd, key_BGQd)
        if groups[0].whole:
            return self.read_group(layer, groups[0].rule, query_BHQd, key_BGQd, value_BGQd, scale)
        output_BHQd = torch.empty_like(query_BHQd)
        for group in groups:
            output_BHQd[:, group.query_H] = self.read_group(
                layer,
                group.rule,
                query_BHQd[:, group.query_H],
                key_BGQd[:, group.kv_G],
                value_BGQd[:, group.kv_G],
                scale,
            )
        return output_BHQd

    def read_group(
        self,
        layer: int,
        rule: Rule,
        query_BHQd: Tensor,
        key_BGQd: Tensor,
        value_BGQd: Tensor,
        scale: float,
    ) -> Tensor:
        """The same for heads that keep the same."""
        width = self.layouts[rule].width
        found = []
        for store, states_BGQd in ((self.keys, key_BGQd), (self.values, value_BGQd)):
            entries = store.get((layer, rule))
            if entries is None:
                entries = store[layer, rule] = Entries(states_BGQd, 0, 0, self.kind)
            if entries.num_rows < self.num_rows or entries.num_columns < width:
                entries.fit(self.num_rows, room_for(width))
            entries.write(self.rows_B1, self.slots[rule], states_BGQd)
            found.append(entries.read(self.rows, width))
        return attend(query_BHQd, found[0], found[1], self.masks[rule], scale)

    def grouped(self, layer: int, query_BHQd: Tensor, key_BGQd: Tensor) -> list[Group]:
        """The groups of a layer's heads."""
        keeps = self.plan.blocks[layer]
        assert len(keeps) == key_BGQd.shape[1], "a plan for other heads"
        shared = query_BHQd.shape[1] // len(keeps)
        groups = []
        for keep in dict.fromkeys(keeps):
            heads = [head for head, each in enumerate(keeps) if each == keep]
            kv_G, query_H = group_slices(heads, shared)
            rule = (keep, self.sliding[layer])
            whole = len(heads) == len(keeps)
            groups.append(Group(rule, kv_G.to(self.device), query_H.to(self.device), whole))
        return groups

    def settle(self, kept_BQ: Tensor) -> None:
        """Of the new columns those marked count; what is old for the queries after them goes."""
        kept_BQ = kept_BQ.cpu()
        ends = (self.positions_BQ.masked_fill(~kept_BQ, -1).amax(1) + 1).tolist()
        following = [max(pair) for pair in zip(self.following[self.rows], ends, strict=True)]
        self.following[self.rows] = following
        for layout in self.layouts.values():
            layout.settle(self.rows, kept_BQ, following)

    def pack(self) -> None:
        """Give back what buffers have too much, as after a long prompt."""
        for rule, layout in self.layouts.items():
            if room_for(max(layout.counts, default=0)) >= room_for(layout.width):
                continue
            order_RW = layout.pack().to(self.device)
            for store in (self.keys, self.values):
                for (_, owner), entries in store.items():
                    if owner == rule:
                        entries.fit(self.num_rows, 0)
                        entries.take(order_RW, room_for(layout.width))

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order; a row may come twice, as beams do."""
        rows_N = torch.tensor(rows, dtype=torch.long, device=self.device)
        for layout in self.layouts.values():
            layout.select_rows(rows)
        for entries in self.buffers:
            entries.fit(self.num_rows, 0)
            entries.select_rows(rows_N)
        self.following = [self.following[row] for row in rows]

    @property
    def buffers(self) -> list[Entries]:
        """Keys and values of all layers and groups."""
        return [*self.keys.values(), *self.values.values()]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return sum(
            part.numel() * part.element_size() for each in self.buffers for part in each.parts
        )

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of every head; 0 before the first forward."""
        return sum(each.entry_bytes for each in self.buffers)

    @property
    def entries(self) -> list[int]:
        """Entries of each row, one a KV head and token."""
        totals = [0] * self.num_rows
        for layer, keeps in enumerate(self.plan.blocks):
            for keep in keeps:
                counts = self.layouts[keep, self.sliding[layer]].counts
                totals = [total + count for total, count in zip(totals, counts, strict=True)]
        return totals


def full_plan(model: PreTrainedModel) -> MemoryPlan:
    """The plan of a model's full cache; ModelError where its attention cannot be split."""
    check_readable(model)
    head_dim = adapter_for(model.config).geometry(model.config).head_dim
    return MemoryPlan.full(heads_of(model), head_dim, fingerprint(model))


def room_for(num_columns: int) -> int:
    """The least whole number of chunks that holds so many columns."""
    return -(-num_columns // ROOM) * ROOM
