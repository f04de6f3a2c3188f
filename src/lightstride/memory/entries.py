"""Keys or values of some heads of one layer, at full precision or in 8 bits.

In 8 bits every head and token has a scale of its own: the largest absolute value over 127.

Shapes: R rows of the buffer, B rows of a forward, G KV heads, W columns, Q new columns, d
head size.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KvType = Literal["model", "int8"]
LARGEST = 127.0
SMALLEST = 1e-8
ROOM = 64
"""Columns by which a buffer grows."""


@dataclass(frozen=True)
class Places:
    """Where a forward writes its new columns."""

    rows: slice
    rows_B1: Tensor
    slots_BQ: Tensor
    """Each row's own columns."""
    start: int | None
    """The first of them, where they are the same in all rows and follow each other."""

    @classmethod
    def of(cls, rows: slice, slots_BQ: Tensor, device: torch.device) -> "Places":
        """Those of some rows' columns, which are given on the CPU."""
        rows_B1 = torch.arange(rows.start, rows.stop, device=device)[:, None]
        first, num_new = int(slots_BQ[0, 0]), slots_BQ.shape[1]
        follow = all(slots == list(range(first, first + num_new)) for slots in slots_BQ.tolist())
        return cls(rows, rows_B1, slots_BQ.to(device), first if follow else None)

    def put(self, target_RGWd: Tensor, states_BGQd: Tensor) -> None:
        """Write states there."""
        if self.start is None:
            target_RGWd[self.rows_B1, :, self.slots_BQ] = states_BGQd.transpose(1, 2)
        else:
            stop = self.start + states_BGQd.shape[2]
            target_RGWd[self.rows, :, self.start : stop] = states_BGQd


class Entries:
    """One buffer of rows and columns; it grows by what is asked of it."""

    def __init__(self, like_BGQd: Tensor, num_rows: int, num_columns: int, kind: KvType) -> None:
        shape = (num_rows, like_BGQd.shape[1], num_columns)
        self.dtype = like_BGQd.dtype
        stored = torch.int8 if kind == "int8" else self.dtype
        self.values_RGWd = like_BGQd.new_zeros((*shape, like_BGQd.shape[3]), dtype=stored)
        self.scales_RGW1: Tensor | None = None
        if kind == "int8":
            self.scales_RGW1 = like_BGQd.new_zeros((*shape, 1))

    @property
    def parts(self) -> list[Tensor]:
        """The tensors that hold it."""
        scales = self.scales_RGW1
        return [self.values_RGWd] if scales is None else [self.values_RGWd, scales]

    def replace(self, parts: list[Tensor]) -> None:
        """Hold these tensors instead."""
        self.values_RGWd = parts[0]
        self.scales_RGW1 = parts[1] if len(parts) > 1 else None

    @property
    def num_rows(self) -> int:
        return self.values_RGWd.shape[0]

    @property
    def num_columns(self) -> int:
        return self.values_RGWd.shape[2]

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of every head."""
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in self.parts)

    def fit(self, num_rows: int, num_columns: int) -> None:
        """Have at least so many rows and columns; new ones are zeros."""
        rows, columns = self.num_rows, self.num_columns
        if rows < num_rows or columns < num_columns:
            more = (0, 0, 0, max(0, num_columns - columns), 0, 0, 0, max(0, num_rows - rows))
            self.replace([torch.nn.functional.pad(part, more) for part in self.parts])

    def write(self, places: Places, states_BGQd: Tensor) -> None:
        """Put each row's new entries at their places."""
        if self.scales_RGW1 is None:
            places.put(self.values_RGWd, states_BGQd)
            return
        scale = (states_BGQd.abs().amax(-1, keepdim=True).float() / LARGEST).clamp_min(SMALLEST)
        scale = scale.to(self.dtype)
        codes = (states_BGQd.float() / scale.float()).round().clamp(-LARGEST, LARGEST)
        places.put(self.values_RGWd, codes.to(torch.int8))
        places.put(self.scales_RGW1, scale)

    def read(self, rows: slice, width: int) -> Tensor:
        """The first columns of some rows, (B, G, width, d), in the model's precision."""
        values_BGWd = self.values_RGWd[rows, :, :width]
        if self.scales_RGW1 is None:
            return values_BGWd
        return values_BGWd.to(self.dtype) * self.scales_RGW1[rows, :, :width]

    def at(self, rows_N1: Tensor, columns_NW: Tensor) -> Tensor:
        """Entries of some rows' columns, (N, G, W, d), in the model's precision."""
        values_NGWd = self.values_RGWd[rows_N1, :, columns_NW].transpose(1, 2)
        if self.scales_RGW1 is None:
            return values_NGWd
        scales_NGW1 = self.scales_RGW1[rows_N1, :, columns_NW].transpose(1, 2)
        return values_NGWd.to(self.dtype) * scales_NGW1

    def move(self, rows_N1: Tensor, columns_NW: Tensor, sources_NGW: Tensor) -> None:
        """Let each head's entries at these columns be those of other places among them."""
        index_NWG1 = sources_NGW.transpose(1, 2)[..., None]
        for part in self.parts:
            there = part[rows_N1, :, columns_NW]
            part[rows_N1, :, columns_NW] = there.gather(1, index_NWG1.expand_as(there))

    def of_heads(self, heads: slice | list[int]) -> "Entries":
        """The same of some of the heads, in memory of their own."""
        own = copy.copy(self)
        own.replace([part[:, heads].clone() for part in self.parts])
        return own

    def take(self, order_RW: Tensor, num_columns: int) -> None:
        """Keep the columns of this order, row by row, in a buffer of so many."""
        rows_R1 = torch.arange(len(order_RW), device=order_RW.device)[:, None]
        more = (0, 0, 0, num_columns - order_RW.shape[1])
        taken = [part[rows_R1, :, order_RW].transpose(1, 2) for part in self.parts]
        self.replace([torch.nn.functional.pad(part, more).contiguous() for part in taken])

    def select_rows(self, rows_N: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self.replace([part[rows_N] for part in self.parts])


def room_for(num_columns: int) -> int:
    """The least whole number of chunks that holds so many columns."""
    return -(-num_columns // ROOM) * ROOM
