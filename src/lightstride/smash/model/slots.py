"""Segments as tensors: which tokens each slot holds, and which slots predict the next one.

A row is a sequence of slots; slot s holds `lengths[s]` consecutive tokens (0: padding).  All of a
batch is gathered at once; nothing loops over segments.

Shapes: B rows, L tokens, S slots, K most tokens of a slot, N slots picked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotBatch:
    """Rows of tokens cut into slots, and what is to be learned from them."""

    tokens_BL: Tensor
    """Tokens, padded at the end with any valid token."""
    lengths_BS: Tensor
    """Tokens of each slot; they add up to the row's tokens; 0 is padding."""
    predicts_BS: Tensor
    """True where the next slot is a segment that this slot is to predict."""
    documents_BS: Tensor | None = None
    """Number of each slot's document, ascending, when rows are packed; None: one a row."""


def slot_tokens(
    tokens_BL: Tensor, lengths_BS: Tensor, slots_N2: tuple[Tensor, Tensor], width: int
) -> Tensor:
    """Tokens of the picked slots (row indices, slot indices), shape (N, K); beyond a slot: junk."""
    rows_N, columns_N = slots_N2
    starts_BS = lengths_BS.cumsum(-1) - lengths_BS
    offsets_NK = starts_BS[rows_N, columns_N][:, None] + torch.arange(
        width, device=tokens_BL.device
    )
    return tokens_BL[rows_N[:, None], offsets_NK.clamp(max=tokens_BL.shape[1] - 1)]


def causal_mask(lengths_BS: Tensor, documents_BS: Tensor | None) -> Tensor:
    """Which slots each slot attends to: itself and earlier ones of its document, (B, S, S)."""
    num_slots = lengths_BS.shape[1]
    ones_SS = torch.ones(num_slots, num_slots, dtype=torch.bool, device=lengths_BS.device)
    sees_BSS = ones_SS.tril() & (lengths_BS > 0)[:, None]
    if documents_BS is not None:
        sees_BSS = sees_BSS & (documents_BS[:, :, None] == documents_BS[:, None])
    return sees_BSS | torch.eye(num_slots, dtype=torch.bool, device=lengths_BS.device)
