"""A KV cache one decides about: where new entries go, which stay, which rows there are.

Every layer that has an attention has one buffer.  A row's entries are its first columns, without
gaps; what is behind them is scratch, so a rejected draft costs nothing but being overwritten.

    row 0   prompt prompt prompt | answer answer | scratch scratch
    row 1   prompt | answer answer answer answer answer | scratch ...

A forward concerns a range of rows.  Buffers grow by chunks of columns ("dynamic": how many entries
an answer needs is not known before it is there) or have `capacity` columns at once ("static").

Shapes: R rows of the buffer, B rows of a forward, G KV heads, W columns, Q new columns of a row, N
of all rows, d size of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import Cache

Storage = Literal["dynamic", "static"]
GROWTH = 64
"""Columns by which a dynamic buffer grows."""
SHRINK = 2
"""Rows that a buffer has for one that is there, and SPARE, when memory is given back."""
SPARE = 3
"""Rows, at least, by which a buffer grows that knows its bound: the next to come need no copy."""


@dataclass(frozen=True)
class FlatPlaces:
    """Where new columns of several rows that stand in one belong."""

    rows_N: Tensor
    """The row of each."""
    places_N: Tensor
    """Its place among the row's new columns."""
    columns_N: Tensor
    """Its column in the cache."""


class KvBuffer(Cache):
    """Keys and values of every layer, shape (R, G, W, d) each."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(layers=[])
        self.storage = storage
        self.capacity = 0
        """Most columns that are ever needed; a static buffer has them at once."""
        self.max_rows: int | None = None
        """Most rows that there is room for."""
        self.num_rows = 0
        self.rows = slice(0, 0)
        self.width = 0
        self.start = 0
        self.columns_BQ: Tensor | None = None
        self.flat: FlatPlaces | None = None
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.entry_bytes = 0
        """Bytes of one entry of one row, over all layers."""

    def reserve(
        self,
        rows: slice,
        width: int,
        start: int,
        columns_BQ: Tensor | None,
        flat: FlatPlaces | None = None,
    ) -> None:
        """Set the rows of the next forward, how many columns it attends to in all, and where it
        writes: at each row's own columns, or from `start` on in all of them, or, where the rows'
        columns stand in one, each at its place."""
        assert self.storage == "dynamic" or width <= self.capacity
        self.rows, self.width, self.start, self.columns_BQ = rows, width, start, columns_BQ
        self.flat = flat

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new entries; all that the forward attends to, shape (B, G, W, d) each."""
        if layer_idx not in self.keys:
            for states in (key_states, value_states):
                self.entry_bytes += states.shape[1] * states.shape[3] * states.element_size()
        self.keys[layer_idx] = self.fitted(self.keys.get(layer_idx), key_states)
        self.values[layer_idx] = self.fitted(self.values.get(layer_idx), value_states)
        keys_BGWd = self.keys[layer_idx][self.rows]
        values_BGWd = self.values[layer_idx][self.rows]
        if self.flat is not None:
            keys_BGWd[self.flat.rows_N, :, self.flat.columns_N] = key_states[0].transpose(0, 1)
            values_BGWd[self.flat.rows_N, :, self.flat.columns_N] = value_states[0].transpose(0, 1)
        elif self.columns_BQ is None:
            stop = self.start + key_states.shape[2]
            keys_BGWd[:, :, self.start : stop] = key_states
            values_BGWd[:, :, self.start : stop] = value_states
        else:
            write(keys_BGWd, self.columns_BQ, key_states)
            write(values_BGWd, self.columns_BQ, value_states)
        return keys_BGWd[:, :, : self.width], values_BGWd[:, :, : self.width]

    def fitted(self, buffer: Tensor | None, states: Tensor) -> Tensor:
        """A layer's buffer, with room for all rows and for the forward at hand; new ones are as
        the states are."""
        rows, columns = (0, 0) if buffer is None else (buffer.shape[0], buffer.shape[2])
        if rows >= self.num_rows and columns >= self.width:
            assert buffer is not None
            return buffer
        if rows < self.num_rows:
            spare = rows // 2 if self.max_rows is None else max(SPARE, rows // 2)
            rows = max(self.num_rows, rows + spare)
        if self.max_rows is not None:
            rows = max(self.num_rows, min(rows, self.max_rows))
        needed = self.columns(self.width)
        columns = max(needed, min(columns, self.capacity))
        grown = states.new_zeros(rows, states.shape[1], columns, states.shape[3])
        if buffer is not None:
            grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer[:rows, :, :columns]
        return grown

    def fit(self, width: int = 0) -> None:
        """Make room for rows that were added since the last forward, and for so many columns."""
        self.width = max(self.width, width)
        for held in (self.keys, self.values):
            for layer, buffer_RGWd in held.items():
                held[layer] = self.fitted(buffer_RGWd, buffer_RGWd)

    def columns(self, used: int) -> int:
        """Columns of a buffer in which so many are used."""
        if self.storage == "static":
            return self.capacity
        return max(used, min(chunks(used), self.capacity))

    def move(self, rows: slice, sources_BQ: Tensor, targets_BQ: Tensor) -> None:
        """Copy, in every layer and each of these rows, entries at the sources to the targets."""
        rows_B1 = torch.arange(rows.start, rows.stop, device=sources_BQ.device)[:, None]
        for buffer_RGWd in self.buffers:
            buffer_RGWd[rows_B1, :, targets_BQ] = buffer_RGWd[rows_B1, :, sources_BQ]

    def copy_row(self, source: int, target: int, used: int) -> None:
        """Write the first entries of a row over those of another."""
        for buffer_RGWd in self.buffers:
            buffer_RGWd[target, :, :used] = buffer_RGWd[source, :, :used]

    def swap_rows(self, one: int, other: int, used: Sequence[int]) -> None:
        """Exchange the first entries of two rows, `used` of each; the fewer ones are set aside."""
        self.fit()
        (few, small), (many, large) = sorted(zip(used, (one, other), strict=True))
        for buffer_RGWd in self.buffers:
            kept = buffer_RGWd[small, :, :few].clone()
            buffer_RGWd[small, :, :many] = buffer_RGWd[large, :, :many]
            buffer_RGWd[large, :, :few] = kept

    def shrink(self, used: int) -> None:
        """Give back memory once most of the rows have left; `used` columns are still needed."""
        buffers = self.buffers
        if not buffers or SHRINK * self.num_rows > buffers[0].shape[0] - SPARE:
            return
        columns = self.columns(used)
        self.width = min(self.width, columns)
        for held in (self.keys, self.values):
            for layer, buffer_RGWd in held.items():
                held[layer] = buffer_RGWd[: self.num_rows, :, :columns].clone()

    @property
    def buffers(self) -> list[Tensor]:
        """Keys and values of all layers; layers without attention have none."""
        return [*self.keys.values(), *self.values.values()]

    @property
    def allocated_entries(self) -> int:
        """Entries that there is memory for, used or not."""
        return max((b.shape[0] * b.shape[2] for b in self.buffers), default=0)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return sum(b.numel() * b.element_size() for b in self.buffers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.width, 0

    def __len__(self) -> int:
        return len(self.keys)


def chunks(num_columns: int) -> int:
    """The least whole number of chunks that holds so many columns, at least one."""
    return max(1, -(-num_columns // GROWTH)) * GROWTH


def write(buffer_BGWd: Tensor, columns_BQ: Tensor, states_BGQd: Tensor) -> None:
    """Write each row's new entries at the row's own columns.

    By index: on a CPU `scatter_` copies the whole buffer first, 1.3 ms a layer where this takes
    0.02 (16 rows of 1,280 entries of 3 heads).
    """
    rows_B1 = torch.arange(len(columns_BQ), device=columns_BQ.device)[:, None]
    buffer_BGWd[rows_B1, :, columns_BQ] = states_BGQd.transpose(1, 2)


def padded(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lists as a tensor (B, K), zeros behind their ends, and their lengths (B,)."""
    width = max(map(len, lists))
    values_BK = torch.tensor([[*each, *[0] * (width - len(each))] for each in lists], device=device)
    return values_BK, torch.tensor([len(each) for each in lists], device=device)
