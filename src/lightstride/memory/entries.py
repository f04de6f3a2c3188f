"""Keys or values of some heads of one layer, at full precision or in 8 bits.

In 8 bits every head and token has a scale of its own: the largest absolute value over 127.

Shapes: B rows, G KV heads, W columns, Q new columns, d head size.
"""

from typing import Literal

import torch
from torch import Tensor

KvType = Literal["model", "int8"]
LARGEST = 127.0


class Entries:
    """One buffer of columns; it grows by what is asked of it."""

    def __init__(self, like_BGQd: Tensor, num_columns: int, kind: KvType) -> None:
        num_rows, num_heads, _, size = like_BGQd.shape
        shape = (num_rows, num_heads, num_columns)
        self.dtype = like_BGQd.dtype
        stored = torch.int8 if kind == "int8" else self.dtype
        self.values_BGWd = like_BGQd.new_zeros((*shape, size), dtype=stored)
        self.scales_BGW1: Tensor | None = None
        if kind == "int8":
            self.scales_BGW1 = like_BGQd.new_zeros((*shape, 1))

    @property
    def parts(self) -> list[Tensor]:
        """The tensors that hold it."""
        return [self.values_BGWd] if self.scales_BGW1 is None else [self.values_BGWd, self.scales_BGW1]

    def replace(self, parts: list[Tensor]) -> None:
        """Hold these tensors instead."""
        self.values_BGWd = parts[0]
        self.scales_BGW1 = parts[1] if len(parts) > 1 else None

    @property
    def num_columns(self) -> int:
        return self.values_BGWd.shape[2]

    def grow(self, num_columns: int) -> None:
        """Have so many columns; the new ones are zeros."""
        more = num_columns - self.num_columns
        if more > 0:
            self.replace([torch.nn.functional.pad(part, (0, 0, 0, more)) for part in self.parts])

    def write(self, rows_B1: Tensor, slots_BQ: Tensor, states_BGQd: Tensor) -> None:
        """Put each row's new entries at the row's own columns."""
        states_BQGd = states_BGQd.transpose(1, 2)
        if self.scales_BGW1 is None:
            self.values_BGWd[rows_B1, :, slots_BQ] = states_BQGd
            return
        scale = (states_BQGd.abs().amax(-1, keepdim=True).float() / LARGEST).clamp_min(1e-8)
        scale = scale.to(self.dtype)
        codes = (states_BQGd.float() / scale.float()).round().clamp(-LARGEST, LARGEST)
        self.values_BGWd[rows_B1, :, slots_BQ] = codes.to(torch.int8)
        self.scales_BGW1[rows_B1, :, slots_BQ] = scale

    def read(self, width: int) -> Tensor:
        """The first columns, (B, G, width, d), in the model's precision."""
        values_BGWd = self.values_BGWd[:, :, :width]
        if self.scales_BGW1 is None:
            return values_BGWd
        return values_BGWd.to(self.dtype) * self.scales_BGW1[:, :, :width]

    def take(self, order_BW: Tensor, num_columns: int) -> None:
        """Keep the columns of this order, row by row, in a buffer of so many."""
        rows_B1 = torch.arange(len(order_BW), device=order_BW.device)[:, None]
        more = num_columns - order_BW.shape[1]
        taken = [part[rows_B1, :, order_BW].transpose(1, 2) for part in self.parts]
        self.replace([torch.nn.functional.pad(part, (0, 0, 0, more)).contiguous() for part in taken])

    def select_rows(self, rows_N: Tensor) -> None:
        """Keep these rows alone."""
        self.replace([part[rows_N] for part in self.parts])

    def join(self, other: "Entries") -> None:
        """Add the rows of another buffer behind these."""
        columns = max(self.num_columns, other.num_columns)
        self.grow(columns)
        other.grow(columns)
        self.replace([torch.cat(pair) for pair in zip(self.parts, other.parts, strict=True)])
