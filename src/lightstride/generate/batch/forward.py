"""Rows inside a model: one forward over some of them, and nothing around it.

transformers' own loop costs more than a small model's forward (masks, cache, checks).  This is
the lean step that plain and smashed decoders share, so that comparing them is fair.

New columns are scratch until `keep` makes some of them count.  For rows of 3 and 2 entries, and two
new columns each,

    row 0   p p p | s s        row 1   p p | s s

In the plain case - rows of one length, new columns one after the other, no sliding window - the
model is given no mask: each column then attends to all before it, which is what is meant.

Shapes: B rows of a forward, Q new columns, K of them with logits, N of all rows, W columns, D
hidden size, V vocabulary.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.generate.batch.alike import LEAST_COLUMNS, filled_entries
from lightstride.generate.batch.cache import FlatPlaces, KvBuffer, Storage, padded
from lightstride.generate.batch.folded import RowLayout, can_fold, folded_heads
from lightstride.generate.batch.masks import (
    AttentionArgument,
    attention_argument,
    check_attention,
    sliding_window,
)
from lightstride.generate.batch.packed import packed_layers
from lightstride.generate.batch.segments import Segment, segments_of
from lightstride.memory.attention import FOLDED


@dataclass(frozen=True)
class Logits:
    """Logits of columns, those of all rows in one: no row is padded to the widest."""

    flat_NV: Tensor
    starts: Sequence[int]
    """Where each row's begin."""

    @classmethod
    def of_rectangle(cls, logits_BKV: Tensor) -> "Logits":
        """Those of rows with as many columns each."""
        num_rows, width, _ = logits_BKV.shape
        return cls(logits_BKV.flatten(0, 1), range(0, num_rows * width, width))

    def at(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Those of one column each of these rows, shape (N, V)."""
        found = [self.starts[row] + column for row, column in zip(rows, columns, strict=True)]
        if found == list(range(len(self.flat_NV))):
            return self.flat_NV
        return self.flat_NV[found]

    def of_row(self, row: int, columns: Sequence[int]) -> Tensor:
        """Those of some columns of a row, shape (K, V)."""
        return self.at([row] * len(columns), columns)


@dataclass(frozen=True)
class Forward:
    """Results of one forward."""

    logits: Logits
    """Of the columns asked for."""
    hidden: Mapping[int, Tensor]
    """For each hidden state asked for, those of all new columns, shape (B, Q, D)."""

    def of_rows(self, rows: Sequence[int]) -> "Forward":
        """The same for some rows alone."""
        if len(rows) == len(self.logits.starts):
            return self
        index = list(rows)
        starts = [self.logits.starts[row] for row in rows]
        return Forward(
            Logits(self.logits.flat_NV, starts), {tap: h[index] for tap, h in self.hidden.items()}
        )

    def taps(self, taps: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The features of one column a row, shape (B, T, D)."""
        rows = range(len(columns))
        return torch.stack([self.hidden[tap][list(rows), list(columns)] for tap in taps], dim=1)


class CachedBatch:
    """Rows in a model, growing by what is kept."""

    can_keep_prefixes = True
    """Whether the first entries of a row are those of any row that begins the same."""

    def __init__(self, model: PreTrainedModel, storage: Storage) -> None:
        check_attention(model.config)
        self.model = model
        self.cache = KvBuffer(storage)
        self.used: list[int] = []
        """Entries of each row."""
        self.positions: list[int] = []
        """Position of each row's last token; -1 before the first."""
        self.always_masked = sliding_window(model.config) is not None
        self.rounds_alike = False
        """Whether what a column gives is to depend on no other (`alike.py`)."""

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        self.used.append(0)
        self.positions.append(-1)
        self.cache.num_rows += 1

    def move_row(self, source: int, target: int) -> None:
        """Write a row over another, which is given up."""
        if source != target:
            self.cache.copy_row(source, target, self.used[source])
            self.used[target] = self.used[source]
            self.positions[target] = self.positions[source]

    def swap_rows(self, one: int, other: int) -> None:
        """Exchange two rows."""
        if one != other:
            self.cache.swap_rows(one, other, (self.used[one], self.used[other]))
            for values in (self.used, self.positions):
                values[one], values[other] = values[other], values[one]

    def drop_last(self) -> None:
        """Forget the last row."""
        self.used.pop()
        self.positions.pop()
        self.cache.num_rows -= 1
        self.cache.shrink(max(self.used, default=0))

    def reserve(self, capacity: int, max_rows: int | None) -> None:
        """Bound the columns of rows, which a static buffer has at once, and the number of rows."""
        self.cache.capacity = self.filled(capacity)
        self.cache.max_rows = max_rows

    def filled(self, width: int) -> int:
        """Entries that attention reads of so many."""
        return filled_entries(width) if self.rounds_alike else width

    @property
    def flattens(self) -> bool:
        """Whether `forward_flat` can be had."""
        return can_fold(self.model)

    def share(self, row: int) -> float:
        """Entries a token and head that a row holds: one, nothing is smashed here."""
        return 1.0

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of one row, over all layers; 0 before the first forward."""
        return self.cache.entry_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return self.cache.allocated_bytes

    def read(self, rows: slice, tokens: Sequence[Sequence[int]], taps: Sequence[int]) -> Forward:
        """Read further tokens of each row, all of which stay; logits of the last ones alone.

        Rows are padded in front, so that their last tokens stand in one column.
        """
        width = max(map(len, tokens))
        pads = [width - len(each) for each in tokens]
        device = self.model.device
        rows_of_tokens = [[0] * pad + [*each] for pad, each in zip(pads, tokens, strict=True)]
        pads_B1 = torch.tensor(pads, device=device)[:, None]
        depths_BQ = torch.arange(width, device=device) - pads_B1
        sees_BQQ = None
        if any(pads):
            ones_QQ = torch.ones(width, width, device=device).bool()
            itself_QQ = torch.eye(width, device=device).bool()
            sees_BQQ = (ones_QQ.tril() & (depths_BQ >= 0)[:, None]) | itself_QQ
        forward = self.forward(
            rows,
            tokens_BQ=torch.tensor(rows_of_tokens, device=device),
            depths_BQ=depths_BQ.clamp(min=0),
            sees_BQQ=sees_BQQ,
            places_BQ=depths_BQ % width if any(pads) else None,
            taps=taps,
            logit_columns=[width - 1],
        )
        self.count(rows, [len(each) for each in tokens], [len(each) for each in tokens])
        return forward

    def forward(
        self,
        rows: slice,
        *,
        depths_BQ: Tensor,
        tokens_BQ: Tensor | None = None,
        embeddings_BQD: Tensor | None = None,
        sees_BQQ: Tensor | None = None,
        places_BQ: Tensor | None = None,
        taps: Sequence[int] = (),
        logit_columns: Sequence[int] = (0,),
    ) -> Forward:
        """Run new columns, which stay scratch until they are kept.

        `depths_BQ` are positions behind the row's last token, from 0; `sees_BQQ` marks which new
        columns see which (None: the ones before and itself); `places_BQ` where they are written
        behind the row's entries (None: in their order).
        """
        device = self.model.device
        if self.rounds_alike and depths_BQ.numel() < LEAST_COLUMNS:
            depths_BQ = depths_BQ.repeat(1, LEAST_COLUMNS)
            tokens_BQ = None if tokens_BQ is None else tokens_BQ.repeat(1, LEAST_COLUMNS)
        num_new = depths_BQ.shape[1]
        used, first = self.used[rows], self.used[rows.start]
        width = max(used) + num_new
        aligned = places_BQ is None and all(each == first for each in used)
        used_B1 = torch.tensor(used, device=device)[:, None]
        columns_BQ = None
        if not aligned:
            places = torch.arange(num_new, device=device) if places_BQ is None else places_BQ
            columns_BQ = used_B1 + places
        full = self.filled(width)
        self.cache.reserve(rows, full, first, columns_BQ)
        mask = None
        needs_none = num_new == 1 or first == 0 or can_fold(self.model)
        is_plain = aligned and sees_BQQ is None and needs_none and not self.rounds_alike
        if not is_plain or self.always_masked:
            sees_BQW = sees(used_B1, num_new, width, sees_BQQ, columns_BQ)
            sees_BQW = nn.functional.pad(sees_BQW, (0, full - width))
            mask = attention_argument(sees_BQW, self.model.config, self.model.dtype)
        positions = torch.tensor(self.positions[rows], device=device)[:, None]
        layout = None
        if mask is not None and num_new <= FOLDED and places_BQ is None:
            segments = segments_of(used, [num_new] * len(used))
            layout = RowLayout(segments, rounds_alike=self.rounds_alike)
        elif self.rounds_alike:
            everyone = Segment(slice(0, len(used)), slice(0, len(used) * num_new), num_new, width)
            layout = RowLayout([everyone], rounds_alike=True)
        return self.run(
            tokens_BQ, embeddings_BQD, positions + 1 + depths_BQ, mask, taps, logit_columns, layout
        )

    def forward_flat(
        self,
        rows: slice,
        tokens: Sequence[Sequence[int]],
        depths: Sequence[Sequence[int]],
        sees_BQQ: Tensor,
        taps: Sequence[int],
    ) -> Forward:
        """The same for rows of many and of few new columns: they stand in one, so that only
        attention is computed for as many columns in every row; logits of all columns."""
        device = self.model.device
        sizes, used = [len(each) for each in tokens], self.used[rows]
        num_new = max(sizes)
        width = max(used) + num_new
        used_B1 = torch.tensor(used, device=device)[:, None]
        columns_BQ = used_B1 + torch.arange(num_new, device=device)
        rows_N: list[int] = []
        places_N: list[int] = []
        positions: list[int] = []
        for row, (size, own) in enumerate(zip(sizes, depths, strict=True)):
            rows_N += [row] * size
            places_N += range(size)
            positions += [self.positions[rows.start + row] + 1 + depth for depth in own]
        where = torch.tensor(rows_N, device=device), torch.tensor(places_N, device=device)
        flat = FlatPlaces(*where, columns_BQ[where])
        full = self.filled(width)
        self.cache.reserve(rows, full, 0, None, flat)
        sees_BQW = sees(used_B1, num_new, width, sees_BQQ, columns_BQ)
        sees_BQW = nn.functional.pad(sees_BQW, (0, full - width))
        found = self.run(
            torch.tensor([[token for each in tokens for token in each]], device=device),
            None,
            torch.tensor([positions], device=device),
            attention_argument(sees_BQW, self.model.config, self.model.dtype),
            taps,
            range(len(positions)),
            RowLayout(segments_of(used, sizes), flat, self.rounds_alike),
        )
        index_BQ = torch.zeros(len(sizes), num_new, dtype=torch.long, device=device)
        index_BQ[where] = torch.arange(len(positions), device=device)
        hidden = {tap: states[0][index_BQ] for tap, states in found.hidden.items()}
        starts = [0, *itertools.accumulate(sizes[:-1])]
        return Forward(Logits(found.logits.flat_NV, starts), hidden)

    def run(
        self,
        tokens_BQ: Tensor | None,
        embeddings_BQD: Tensor | None,
        positions_BQ: Tensor,
        mask: AttentionArgument | None,
        taps: Sequence[int],
        logit_columns: Sequence[int],
        layout: RowLayout | None = None,
    ) -> Forward:
        """What the model makes of new columns, whose places in the cache are reserved."""
        # By index: of a slice torch multiplies row by row, each with a copy of the head.
        if self.rounds_alike and len(positions_BQ) * len(logit_columns) < LEAST_COLUMNS:
            logit_columns = [*logit_columns] * LEAST_COLUMNS
        wanted = torch.tensor(logit_columns, device=self.model.device)
        with packed_layers(self.model), folded_heads(self.model, layout):
            output = self.model(
                input_ids=tokens_BQ,
                inputs_embeds=embeddings_BQD,
                position_ids=positions_BQ,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=wanted,
                output_hidden_states=list(taps) if taps else None,
            )
        return Forward(
            Logits.of_rectangle(output.logits), {tap: output.hidden_states[tap] for tap in taps}
        )

    def give_up(self) -> None:
        """Forget a forward that ended before its last layer: layers behind it lack room so far."""
        self.cache.fit()

    def keep(self, rows: slice, kept: Sequence[Sequence[int]], advance: Sequence[int]) -> None:
        """Of the columns just run, each row keeps these, in ascending order, and forgets the rest;
        its last token now stands so many positions later."""
        if any(list(each) != list(range(len(each))) for each in kept):
            device = self.model.device
            columns_BK, lengths_B = padded(kept, device)
            places_K = torch.arange(columns_BK.shape[1], device=device)
            columns_BK = torch.where(places_K < lengths_B[:, None], columns_BK, places_K)
            used_B1 = torch.tensor(self.used[rows], device=device)[:, None]
            self.cache.move(rows, used_B1 + columns_BK, used_B1 + places_K)
        self.count(rows, [len(each) for each in kept], advance)

    def count(self, rows: slice, entries: Sequence[int], advance: Sequence[int]) -> None:
        """Let the entries behind each row's own count, and move its position on."""
        for index, more, further in zip(
            range(rows.start, rows.stop), entries, advance, strict=True
        ):
            self.used[index] += more
            self.positions[index] += further


def sees(
    used_B1: Tensor,
    num_new: int,
    width: int,
    sees_BQQ: Tensor | None,
    columns_BQ: Tensor | None,
) -> Tensor:
    """Which columns each new one attends to: its row's entries, and new ones by `sees_BQQ`."""
    num_rows, device = len(used_B1), used_B1.device
    if sees_BQQ is None:
        sees_BQQ = torch.ones(1, num_new, num_new, device=device).tril().bool()
    new_BQQ = sees_BQQ.expand(num_rows, num_new, num_new)
    own_BW = torch.arange(width, device=device) < used_B1
    own_BQW = own_BW[:, None].expand(num_rows, num_new, width)
    if columns_BQ is None:
        return torch.cat([own_BQW[..., : width - num_new], new_BQQ], dim=-1)
    return own_BQW.clone().scatter(2, columns_BQ[:, None].expand_as(new_BQQ), new_BQQ)
