"""Entries of long texts: heads of a block that keep the same share one buffer.

A forward writes its new columns into free ones of every buffer and attends group by group;
`settle` says which of them count, and what has become old is smashed: its columns are free for
what comes next.  Heads that choose by scores first move what they chose to the columns that stay.

Shapes: R rows, B rows of a forward, H query heads, G KV heads, S query heads a KV head, Q new
columns, W columns, N chunks that become old, d head size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.memory.attention import attend, folded_queries
from lightstride.memory.entries import Entries, KvType, Places, room_for
from lightstride.memory.layout import Chunks, Layout
from lightstride.memory.masks import borders, stays
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.scores import Scores, best_places, moves


@dataclass(frozen=True)
class Group:
    """Heads of one layer that keep the same."""

    rule: int
    """The number of what they keep, among the rules of the plan."""
    kv_G: Tensor
    heads: slice | list[int]
    """The same, as a slice where they are equally far apart."""
    whole: bool
    """Whether they are all heads of the layer."""


@dataclass(frozen=True)
class Crossing:
    """Chunks that become old within a forward, and what else is needed to mask them."""

    chunks: Chunks
    there_BQW: Tensor
    young_BQW: Tensor
    stays_BW: Tensor
    """Whether an entry that was moved before this forward stays."""


class Groups:
    """Entries of some rows, by layer and group of heads."""

    def __init__(
        self,
        plan: MemoryPlan,
        kind: KvType,
        scores: Scores | None,
        sliding: Sequence[int | None],
        device: torch.device,
    ) -> None:
        self.plan = plan
        self.kind: KvType = kind
        self.scores = scores
        self.device = device
        blocks = [
            [(keep, own) for keep in keeps] for keeps, own in zip(plan.blocks, sliding, strict=True)
        ]
        rules = list(dict.fromkeys(rule for block in blocks for rule in block))
        self.groups = [grouped([rules.index(rule) for rule in block], device) for block in blocks]
        self.layouts = [Layout(keep, plan.sinks, own) for keep, own in rules]
        self.keys: dict[tuple[int, int], Entries] = {}
        self.values: dict[tuple[int, int], Entries] = {}
        self.num_rows = 0
        self.rows = slice(0, 0)
        self.positions_BQ = torch.zeros((0, 0), dtype=torch.long)
        self.masks: dict[int, Tensor | None] = {}
        self.folded: dict[tuple[int, int], Tensor] = {}
        """What `mask` made, by rule and number of query heads."""
        self.crossings: dict[int, Crossing] = {}
        self.places: dict[int, Places] = {}

    def take(
        self,
        layout: Layout,
        keys: dict[int, Entries],
        values: dict[int, Entries],
        following: Sequence[int],
    ) -> None:
        """Hold of all these entries what the plan keeps; they are given up layer by layer."""
        self.num_rows = len(following)
        for own in self.layouts:
            own.copy(layout)
        for layer in list(keys):
            for theirs, store in ((keys, self.keys), (values, self.values)):
                entries = theirs.pop(layer)
                entries.fit(self.num_rows, layout.width)
                for group in self.groups[layer]:
                    store[layer, group.rule] = entries.of_heads(group.heads)
        self.rows = slice(0, self.num_rows)
        self.forget(following)
        self.pack()

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        self.num_rows += 1
        for layout in self.layouts:
            layout.add_row()

    def open(self, rows: slice, positions_BQ: Tensor, sees_BQQ: Tensor) -> None:
        """Make room in some rows for new columns, of which each sees some of the others."""
        self.rows = rows
        self.positions_BQ = positions_BQ
        self.crossings = {}
        self.folded.clear()
        for rule, layout in enumerate(self.layouts):
            slots_BQ = layout.reserve(rows, self.positions_BQ)
            self.places[rule] = Places.of(rows, slots_BQ, self.device)
            if layout.chooses and self.crosses(rule, sees_BQQ):
                continue
            mask = layout.mask(rows, self.positions_BQ, sees_BQQ)
            self.masks[rule] = None if mask is None else mask.to(self.device)

    def crosses(self, rule: int, sees_BQQ: Tensor) -> bool:
        """Whether some new column is past chunks that heads have not yet chosen from.

        What is needed to mask them is then remembered.
        """
        layout, rows, queries_BQ = self.layouts[rule], self.rows, self.positions_BQ
        ends = [layout.keep.border(query) for query in queries_BQ.amax(1).tolist()]
        if all(end <= border for end, border in zip(ends, layout.border[rows], strict=True)):
            return False
        there_BQW = layout.there(rows, sees_BQQ)
        chunks = layout.chunks(rows, ends, there_BQW[:, -1])
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
        groups = self.groups[layer]
        if groups[0].whole:
            return self.read_group(layer, groups[0].rule, query_BHQd, key_BGQd, value_BGQd, scale)
        query_BGSQd = query_BHQd.unflatten(1, (key_BGQd.shape[1], -1))
        output_BGSQd = torch.empty_like(query_BGSQd)
        for group in groups:
            heads = group.heads
            own_BGSQd = query_BGSQd[:, heads]
            output_BHQd = self.read_group(
                layer,
                group.rule,
                own_BGSQd.flatten(1, 2),
                key_BGQd[:, heads],
                value_BGQd[:, heads],
                scale,
            )
            output_BGSQd[:, heads] = output_BHQd.view(own_BGSQd.shape)
        return output_BGSQd.flatten(1, 2)

    def read_group(
        self,
        layer: int,
        rule: int,
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
            entries.write(self.places[rule], states_BGQd)
            found.append(entries.read(self.rows, width))
        crossing = self.crossings.get(rule)
        if crossing is None:
            mask = self.mask(rule, query_BHQd.dtype, folded_queries(query_BHQd, found[0]))
        else:
            mask = self.chosen_mask(layer, rule, crossing)
        return attend(query_BHQd, found[0], found[1], mask, scale)

    def mask(self, rule: int, dtype: torch.dtype, folded: int) -> Tensor | None:
        """What is added to the logits of all heads of a rule, (B, 1, R, W), made once for so many
        query heads of a KV head; layers may differ in that."""
        mask_BQW, key = self.masks[rule], (rule, folded)
        if mask_BQW is None:
            return None
        if key not in self.folded:
            mask = mask_BQW[:, None]
            if not mask.is_floating_point():
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)
            if mask.shape[2] > 1:
                mask = torch.cat([mask] * folded, 2)
            self.folded[key] = mask.to(dtype)
        return self.folded[key]

    def chosen_mask(self, layer: int, rule: int, crossing: Crossing) -> Tensor:
        """What each new column sees where chunks become old within a forward, (B, G, Q, W)."""
        chunks = crossing.chunks
        best_NGW = self.best(layer, rule, chunks)
        best_NGW = best_NGW.gather(-1, chunks.stands_for_NW[:, None].expand_as(best_NGW))
        stays_BGW = crossing.stays_BW[:, None].repeat(1, best_NGW.shape[1], 1)
        stays_BGW[chunks.rows_N1 - self.rows.start, :, chunks.columns_NW] = best_NGW.transpose(1, 2)
        seen_BGQW = crossing.young_BQW[:, None] | stays_BGW[:, :, None]
        return seen_BGQW & crossing.there_BQW[:, None]

    def best(self, layer: int, rule: int, chunks: Chunks) -> Tensor:
        """What each head of a layer that keeps by a rule chooses of chunks, (N, G, W)."""
        assert self.scores is not None, "a plan that chooses by scores, and none are there"
        key_NGWd, value_NGWd = (
            store[layer, rule].at(chunks.rows_N1, chunks.columns_NW)
            for store in (self.keys, self.values)
        )
        kv_G = next(group.kv_G for group in self.groups[layer] if group.rule == rule)
        score_NGW = self.scores.of(layer, kv_G, key_NGWd, value_NGWd)
        return best_places(score_NGW, *self.places_of(rule, chunks))

    def places_of(self, rule: int, chunks: Chunks) -> tuple[Tensor, Keep, int, Tensor]:
        """What is asked of the places of chunks."""
        keep, sinks = self.layouts[rule].keep, self.plan.sinks
        return chunks.positions_NW[:, None], keep, sinks, chunks.there_NW[:, None]

    @torch.inference_mode()
    def choose(self, rule: int, following: Sequence[int]) -> None:
        """Let each head move what it chooses of what becomes old to the columns that stay."""
        layout = self.layouts[rule]
        ends = [layout.keep.border(query) for query in following]
        if ends == layout.border[self.rows]:
            return
        found = layout.chunks(self.rows, ends, layout.position_RW[self.rows] >= 0)
        if found is None:
            return
        chunks = found.to(self.device)
        places = self.places_of(rule, chunks)
        for layer, owner in list(self.keys):
            if owner != rule:
                continue
            sources_NGW = moves(self.best(layer, rule, chunks), *places)
            stand_NGW = chunks.stands_for_NW[:, None].expand_as(sources_NGW)
            sources_NGW = sources_NGW.gather(-1, stand_NGW)
            for store in (self.keys, self.values):
                store[layer, rule].move(chunks.rows_N1, chunks.columns_NW, sources_NGW)

    def settle(self, dropped_BQ: Tensor | None, following: Sequence[int]) -> None:
        """Of the new columns those marked go, and what is old for the queries after them."""
        if dropped_BQ is not None:
            for layout in self.layouts:
                layout.drop(self.rows, dropped_BQ)
        self.forget(following)

    def forget(self, following: Sequence[int]) -> None:
        """What is old for the next queries of the rows at hand goes."""
        for rule, layout in enumerate(self.layouts):
            if layout.chooses:
                self.choose(rule, following)
            layout.forget(self.rows, following)

    def pack(self) -> None:
        """Give back what buffers have too much, as after a long prompt."""
        for rule, layout in enumerate(self.layouts):
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
        for layout in self.layouts:
            layout.select_rows(rows)
        for entries in self.buffers:
            entries.fit(self.num_rows, 0)
            entries.select_rows(rows_N)
        self.num_rows = len(rows)

    @property
    def buffers(self) -> list[Entries]:
        """Keys and values of all layers and groups."""
        return [*self.keys.values(), *self.values.values()]

    def entries_of(self, row: int, following: int) -> int:
        """Entries of a row, one a KV head and token."""
        counts = [layout.width - len(layout.free[row]) for layout in self.layouts]
        return sum(
            counts[group.rule] * len(group.kv_G) for groups in self.groups for group in groups
        )


def grouped(rules: Sequence[int], device: torch.device) -> list[Group]:
    """The groups of a layer's heads, given the rule of each."""
    groups = []
    for rule in dict.fromkeys(rules):
        heads = [head for head, each in enumerate(rules) if each == rule]
        kv_G = torch.tensor(heads, device=device)
        groups.append(Group(rule, kv_G, evenly(heads), len(heads) == len(rules)))
    return groups


def evenly(heads: list[int]) -> slice | list[int]:
    """Indices as a slice, if they are equally far apart."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    every = slice(heads[0], heads[-1] + 1, step)
    return every if list(range(heads[-1] + 1))[every] == heads else heads
