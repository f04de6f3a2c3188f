"""A KV cache that holds, for every group of heads, what the memory plan lets them keep.

The heads of a block that keep the same share one buffer.  A forward writes its new columns into
free ones of every buffer and attends group by group; `settle` says which of them count, and what
has become old is smashed: its columns are free for what comes next.  Heads that choose by scores
first move what they chose to the columns that stay.  Buffers grow by chunks, so a head that keeps
little never has room for more.

Shapes: R rows, B rows of a forward, H query heads, G KV heads, Q new columns, W columns, N chunks
that become old, d head size.
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
from lightstride.memory.layout import Chunks, Layout
from lightstride.memory.masks import borders, stays
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.scores import Scores, best_places, moves
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
    """How a model's cache is kept: a plan, the type of its entries, and scores to choose by."""

    plan: MemoryPlan
    kind: KvType = "model"
    scores: Scores | None = None


@dataclass(frozen=True)
class Crossing:
    """Chunks that become old within a forward, and what else is needed to mask them."""

    chunks: Chunks
    there_BQW: Tensor
    young_BQW: Tensor
    stays_BW: Tensor
    """Whether an entry that was moved before this forward stays."""


class MemoryCache:
    """Entries of some rows, by layer and group of heads."""

    def __init__(self, model: PreTrainedModel, memory: Memory) -> None:
        plan = memory.plan
        self.plan = plan
        self.kind: KvType = memory.kind
        self.scores = memory.scores
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
        self.crossings: dict[Rule, Crossing] = {}
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
        self.crossings = {}
        for rule, layout in self.layouts.items():
            self.slots[rule] = layout.reserve(rows, self.positions_BQ).to(self.device)
            if layout.chooses and self.crosses(rule, sees_BQQ):
                continue
            mask = layout.mask(rows, self.positions_BQ, sees_BQQ)
            self.masks[rule] = None if mask is None else mask.to(self.device)

    def crosses(self, rule: Rule, sees_BQQ: Tensor) -> bool:
        """Whether some new column is past chunks that heads have not yet chosen from.

        What is needed to mask them is then remembered.
        """
        layout, rows, queries_BQ = self.layouts[rule], self.rows, self.positions_BQ
        last = queries_BQ.amax(1).tolist()
        if all(
            layout.keep.border(query) <= border
            for query, border in zip(last, layout.border[rows], strict=True)
        ):
            return False
        there_BQW = layout.there(rows, sees_BQQ)
        chunks = layout.chunks(rows, last, there_BQW[:, -1])
        if chunks is None:
            return False
        position_BW = layout.position_RW[rows]
        young_BQW = position_BW[:, None] >= borders(layout.keep, queries_BQ)[..., None]
        stays_BW = stays(layout.keep, position_BW, layout.sinks)
        device = self.device
        self.crossings[rule] = Crossing(
            chunks.to(device), there_BQW.to(device), young_BQW.to(device), stays_BW.to(device)
        )
        return True

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
        crossing = self.crossings.get(rule)
        mask = self.masks[rule] if crossing is None else self.chosen_mask(layer, rule, crossing)
        return attend(query_BHQd, found[0], found[1], mask, scale)

    def chosen_mask(self, layer: int, rule: Rule, crossing: Crossing) -> Tensor:
        """What each new column sees where chunks become old within a forward, (B, G, Q, W)."""
        chunks = crossing.chunks
        best_NGW = self.best(layer, rule, chunks)
        best_NGW = best_NGW.gather(-1, chunks.stands_for_NW[:, None].expand_as(best_NGW))
        stays_BGW = crossing.stays_BW[:, None].repeat(1, best_NGW.shape[1], 1)
        stays_BGW[chunks.rows_N1 - self.rows.start, :, chunks.columns_NW] = best_NGW.transpose(1, 2)
        seen_BGQW = crossing.young_BQW[:, None] | stays_BGW[:, :, None]
        return seen_BGQW & crossing.there_BQW[:, None]

    def best(self, layer: int, rule: Rule, chunks: Chunks) -> Tensor:
        """What each head of a layer that keeps by a rule chooses of chunks, (N, G, W)."""
        assert self.scores is not None, "a plan that chooses by scores, and none are there"
        key_NGWd, value_NGWd = (
            store[layer, rule].at(chunks.rows_N1, chunks.columns_NW)
            for store in (self.keys, self.values)
        )
        kv_G = next(group.kv_G for group in self.groups[layer] if group.rule == rule)
        score_NGW = self.scores.of(layer, kv_G, key_NGWd, value_NGWd)
        places = chunks.positions_NW[:, None], rule[0], self.plan.sinks, chunks.there_NW[:, None]
        return best_places(score_NGW, *places)

    @torch.inference_mode()
    def choose(self, rule: Rule, following: Sequence[int]) -> None:
        """Let each head move what it chooses of what becomes old to the columns that stay."""
        layout = self.layouts[rule]
        found = layout.chunks(self.rows, following, layout.position_RW[self.rows] >= 0)
        if found is None:
            return
        chunks = found.to(self.device)
        places = chunks.positions_NW[:, None], rule[0], self.plan.sinks, chunks.there_NW[:, None]
        for layer, owner in list(self.keys):
            if owner != rule:
                continue
            sources_NGW = moves(self.best(layer, rule, chunks), *places)
            stand_NGW = chunks.stands_for_NW[:, None].expand_as(sources_NGW)
            sources_NGW = sources_NGW.gather(-1, stand_NGW)
            for store in (self.keys, self.values):
                store[layer, rule].move(chunks.rows_N1, chunks.columns_NW, sources_NGW)

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
        for rule, layout in self.layouts.items():
            layout.drop(self.rows, kept_BQ)
            if layout.chooses:
                self.choose(rule, following)
            layout.forget(self.rows, following)

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
