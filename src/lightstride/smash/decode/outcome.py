"""What both checked ways of decoding share: the outcome of a step, and segments as tensors.

Shapes: B rows, T taps, D hidden size, Q new columns, K tokens of a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.generate.forward import Forward


@dataclass(frozen=True)
class Checked:
    """What a step of the base confirmed, row by row."""

    accepted: list[list[int]]
    """Drafted tokens that are the base's own."""
    following: list[int]
    """The base's token after them."""
    taps_BTD: Tensor
    """The features that the next draft starts from."""
    kv_entries: list[int]
    """Entries stored."""


def pad(segments: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Segments as a tensor (B, K), junk behind their ends, and their lengths (B,)."""
    width = max(map(len, segments))
    tokens_BK = torch.tensor([[*s, *[0] * (width - len(s))] for s in segments], device=device)
    return tokens_BK, torch.tensor([len(s) for s in segments], device=device)


def pick(forward: Forward, columns_B: Tensor) -> Tensor:
    """The features of one column a row, shape (B, T, D)."""
    rows_B = torch.arange(len(columns_B), device=columns_B.device)
    return torch.stack([hidden[rows_B, columns_B] for hidden in forward.hidden], dim=1)
