"""Keys or values of some heads of one layer, at full precision or in 8 bits.

In 8 bits every head and token has a scale of its own: the largest absolute value over 127.

Shapes: R rows of the buffer, B rows of a forward, G KV heads, W columns, Q new columns, d
head size.
"""

from typing import Literal

import torch
from torch import Tensor

KvType = Literal["model", "int8"]
LARGEST = 127.0
SMALLEST = 1e-8


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

    def write(self, rows_B1: Tensor, slots_BQ: Tensor, states_BGQd: Tensor) -> None:
        """Put each row's new entries at the row's own columns."""
        states_BQGd = states_BGQd.transpose(1, 2)
        if self.scales_RGW1 is None:
            self.values_RGWd[rows_B1, :, slots_BQ] = states_BQGd
            return
        scale = (states_BQGd.abs().amax(-1, keepdim=True).float() / LARGEST).clamp_min(SMALLEST)
        scale = scale.to(self.dtype)
        codes = (states_BQGd.float() / scale.float()).round().clamp(-LARGEST, LARGEST)
        self.values_RGWd[rows_B1, :, slots_BQ] = codes.to(torch.int8)
        self.scales_RGW1[rows_B1, :, slots_BQ] = scale

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

    def take(self, order_RW: Tensor, num_columns: int) -> None:
        """Keep the columns of this order, row by row, in a buffer of so many."""
        rows_R1 = torch.arange(len(order_RW), device=order_RW.device)[:, None]
        more = (0, 0, 0, num_columns - order_RW.shape[1])
        taken = [part[rows_R1, :, order_RW].transpose(1, 2) for part in self.parts]
        self.replace([torch.nn.functional.pad(part, more).contiguous() for part in taken])

    def select_rows(self, rows_N: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self.replace([part[rows_N] for part in self.parts])
