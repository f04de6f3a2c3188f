"""All entries of short texts, as the full cache has them; the plan is a mask on them.

Buffers by group of heads save little while texts are short, and cost two or three attentions a
block.  So there is one buffer a layer at first, and one attention.  What is added to the logits of
one new token is kept from step to step, and made again, for all layers at once, when windows have
moved on.

Heads that choose by scores do so as soon as a chunk of 16 tokens is whole: a token's score never
changes, so it is the choice that they would make when it is old.

Shapes: R rows, B rows of a forward, F heads of all layers, H query heads, G KV heads, Q new
columns, W columns, N chunks, d head size.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.memory.attention import attend, folded_queries
from lightstride.memory.entries import Entries, KvType, Places, room_for
from lightstride.memory.held.choice import Chooser
from lightstride.memory.held.rules import Changes, HeadRules
from lightstride.memory.held.step_masks import StepMasks
from lightstride.memory.layout import FREE, Chunks, Layout
from lightstride.memory.plan import ALL, CHUNK, MemoryPlan
from lightstride.memory.scores import Scores

AT_ONCE = 2**22
"""Elements of a forward's masks up to which those of all layers are made at once."""


class Whole:
    """Entries of some rows, by layer."""

    def __init__(
        self,
        plan: MemoryPlan,
        kind: KvType,
        scores: Scores | None,
        sliding: Sequence[int | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.plan = plan
        self.kind: KvType = kind
        self.device = device
        self.dtype = dtype
        ends = itertools.accumulate(map(len, plan.blocks))
        self.heads = [
            slice(end - len(keeps), end) for keeps, end in zip(plan.blocks, ends, strict=True)
        ]
        """Each layer's heads among those of all."""
        self.rules = HeadRules.of_plan(plan, sliding, device)
        self.rules_of = [self.rules.part(heads) for heads in self.heads]
        self.changes = Changes(plan, sliding)
        self.chooser = Chooser(plan, scores, sliding, device)
        self.layout = Layout(ALL, plan.sinks, None)
        """Its border is what heads have chosen up to."""
        self.chosen_RFW = torch.zeros((0, plan.num_heads, 0), dtype=torch.bool, device=device)
        self.gone: list[tuple[int, int]] = []
        """Entries of each row that no head sees any more, and up to which query."""
        self.keys: dict[int, Entries] = {}
        self.values: dict[int, Entries] = {}
        self.rows = slice(0, 0)
        self.positions_BQ = torch.zeros((0, 0), dtype=torch.long)
        self.queries_BQ = self.positions_BW = self.positions_BQ
        self.places: Places | None = None
        self.added_BFQW: Tensor | None = None
        """What is added to the logits of all heads; Q is 1 where nothing moves on within it."""
        self.there_B1QW: Tensor | None = None
        """What is added where a new column may not see another; None: that is in the above."""
        self.folded: dict[int, Tensor] = {}
        """The same, (B, 1, R, W), by how many query heads a KV head has: layers may differ."""
        self.chunks: Chunks | None = None
        """Chunks of which heads choose within the forward."""
        self.steps = StepMasks(self.changes)

    @property
    def num_rows(self) -> int:
        return len(self.layout.free)

    def columns_for(self, num_new: int) -> int:
        """Columns that are needed for so many new ones."""
        return max(self.layout.counts, default=0) + num_new

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        self.layout.add_row()
        self.gone.append((0, 0))
        self.steps.fit(self.num_rows)

    def open(self, rows: slice, positions_BQ: Tensor, sees_BQQ: Tensor) -> None:
        """Make room in some rows for new columns, of which each sees some of the others."""
        layout = self.layout
        self.rows, self.positions_BQ = rows, positions_BQ
        self.places = Places.of(rows, layout.reserve(rows, positions_BQ), self.device)
        self.there_B1QW = self.added_BFQW = self.chunks = None
        self.folded.clear()
        queries = positions_BQ.amax(1).tolist()
        ends = [self.chooser.border(query) for query in queries]
        crosses = any(end > done for end, done in zip(ends, layout.border[rows], strict=True))
        is_step = positions_BQ.shape[1] == 1 and not crosses
        if is_step:
            self.added_BFQW = self.steps.next(queries, self.places, layout.width)
            if self.added_BFQW is not None:
                return
        else:
            self.steps.forget(rows)
        there_BQW = layout.there(rows, sees_BQQ)
        there_B1QW = torch.zeros_like(there_BQW, dtype=self.dtype).masked_fill_(
            ~there_BQW, -math.inf
        )
        self.there_B1QW = there_B1QW[:, None].to(self.device)
        self.fit_chosen()
        if crosses:
            chunks = layout.chunks(rows, ends, there_BQW[:, -1])
            self.chunks = None if chunks is None else chunks.to(self.device)
        self.queries_BQ = self.asked().to(self.device)
        self.positions_BW = layout.position_RW[rows].to(self.device)
        size = self.queries_BQ.numel() * layout.width * self.plan.num_heads
        if self.chunks is None and size <= AT_ONCE:
            self.added_BFQW = self.added(self.rules, self.chosen_RFW[rows, :, : layout.width])
            if is_step:
                self.added_BFQW = self.added_BFQW + self.there_B1QW
                self.there_B1QW = None
                self.steps.made(queries, rows, self.added_BFQW)

    def fit_chosen(self) -> None:
        """Have room for what heads choose of all columns."""
        columns = room_for(self.layout.width) - self.chosen_RFW.shape[2]
        more = (0, max(0, columns), 0, 0, 0, max(0, self.num_rows - len(self.chosen_RFW)))
        if any(more):
            self.chosen_RFW = torch.nn.functional.pad(self.chosen_RFW, more)

    def asked(self) -> Tensor:
        """Queries that all differ in what is old for them: (B, Q), or (B, 1) if none do."""
        bounds = zip(*(each.tolist() for each in self.positions_BQ.aminmax(dim=1)), strict=True)
        alike = all(last < self.changes.after(first) for first, last in bounds)
        return self.positions_BQ[:, :1] if alike else self.positions_BQ

    def added(self, rules: HeadRules, chosen_BFW: Tensor) -> Tensor:
        """What is added to the logits of some heads, (B, F, Q, W), but for what is not there."""
        return rules.added(self.queries_BQ, self.positions_BW, chosen_BFW, self.dtype)

    def read(
        self, layer: int, query_BHQd: Tensor, key_BGQd: Tensor, value_BGQd: Tensor, scale: float
    ) -> Tensor:
        """Store a layer's new columns, and the outputs of its heads, shape (B, H, Q, d)."""
        assert self.places is not None
        width = self.layout.width
        found = []
        for store, states_BGQd in ((self.keys, key_BGQd), (self.values, value_BGQd)):
            entries = store.get(layer)
            if entries is None:
                entries = store[layer] = Entries(states_BGQd, 0, 0, self.kind)
            entries.fit(self.num_rows, room_for(width))
            entries.write(self.places, states_BGQd)
            found.append(entries.read(self.rows, width))
        mask_BGRW = self.mask(layer, folded_queries(query_BHQd, found[0]))
        return attend(query_BHQd, found[0], found[1], mask_BGRW, scale)

    def mask(self, layer: int, folded: int) -> Tensor:
        """What is added to the logits of a layer's heads, whose keys are there: (B, G, R, W), of
        R columns as many as so many query heads have; or of 1, which is that of all."""
        added_BGQW = self.added_of(layer)
        if self.there_B1QW is None:
            return added_BGQW
        if folded not in self.folded:
            self.folded[folded] = torch.cat([self.there_B1QW] * folded, 2)
        if added_BGQW.shape[2] > 1:
            added_BGQW = torch.cat([added_BGQW] * folded, 2)
        return added_BGQW + self.folded[folded]

    def added_of(self, layer: int) -> Tensor:
        """The same but for what is not there, (B, G, Q, W)."""
        heads = self.heads[layer]
        if self.added_BFQW is not None:
            return self.added_BFQW[:, heads]
        chosen_BGW = self.chosen_RFW[self.rows, heads, : self.layout.width]
        chunks = self.chunks
        if chunks is not None and self.chooser.chooses(heads):
            best_NWG = self.best([layer], chunks).transpose(1, 2)
            chosen_BGW = chosen_BGW.clone()
            chosen_BGW[chunks.rows_N1 - self.rows.start, :, chunks.columns_NW] = best_NWG
        return self.added(self.rules_of[layer], chosen_BGW)

    def best(self, layers: Sequence[int], chunks: Chunks) -> Tensor:
        """What heads of layers that follow each other choose of chunks, (N, F, W)."""
        key_NFWd, value_NFWd = (
            torch.cat([store[each].at(chunks.rows_N1, chunks.columns_NW) for each in layers], 1)
            for store in (self.keys, self.values)
        )
        heads = slice(self.heads[layers[0]].start, self.heads[layers[-1]].stop)
        return self.chooser.best(heads, key_NFWd, value_NFWd, chunks)

    @torch.inference_mode()
    def settle(self, dropped_BQ: Tensor | None, following: Sequence[int]) -> None:
        """Of the new columns those marked go; heads choose of chunks that are whole."""
        layout, rows = self.layout, self.rows
        if dropped_BQ is not None:
            layout.drop(rows, dropped_BQ)
            self.steps.forget(rows)
        ends = [query // CHUNK * CHUNK for query in following]
        if self.chooser.first is None or ends == layout.border[rows]:
            return
        found = layout.chunks(rows, ends, layout.position_RW[rows] != FREE)
        layout.border[rows] = ends
        if found is not None:
            chunks = found.to(self.device)
            self.fit_chosen()
            best_NWF = self.best(sorted(self.keys), chunks).transpose(1, 2)
            self.chosen_RFW[chunks.rows_N1, :, chunks.columns_NW] = best_NWF

    def pack(self) -> None:
        """Give back what buffers have too much, as after a long prompt."""
        layout = self.layout
        if room_for(max(layout.counts, default=0)) >= room_for(layout.width):
            return
        order_RW = layout.pack().to(self.device)
        self.fit_chosen()
        for entries in self.buffers:
            entries.fit(self.num_rows, 0)
            entries.take(order_RW, room_for(layout.width))
        index_RFW = order_RW[:, None].expand(-1, self.plan.num_heads, -1)
        self.chosen_RFW = self.chosen_RFW.gather(2, index_RFW)
        self.steps.fit(self.num_rows)

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order; a row may come twice, as beams do."""
        rows_N = torch.tensor(rows, dtype=torch.long, device=self.device)
        for entries in self.buffers:
            entries.fit(self.num_rows, 0)
            entries.select_rows(rows_N)
        self.fit_chosen()
        self.chosen_RFW = self.chosen_RFW[rows_N]
        self.layout.select_rows(rows)
        self.gone = [self.gone[row] for row in rows]
        self.steps.fit(len(rows))

    @property
    def buffers(self) -> list[Entries]:
        """Keys and values of all layers."""
        return [*self.keys.values(), *self.values.values()]

    def entries_of(self, row: int, following: int) -> int:
        """Entries of a row that some head may still see, one a KV head and token."""
        layout = self.layout
        gone, until = self.gone[row]
        if following >= until:
            position_1W = layout.position_RW[row : row + 1].to(self.device)
            query_11 = torch.tensor([[following]], device=self.device)
            chosen_1FW = self.chosen_RFW[row : row + 1, :, : layout.width]
            seen_FW = self.rules.seen(query_11, position_1W, chosen_1FW)[0, :, 0]
            gone = int((~seen_FW & (position_1W != FREE)).sum())
            self.gone[row] = gone, self.changes.after(following)
        held = layout.width - len(layout.free[row])
        return self.plan.num_heads * held - gone
