"""Segments as tensors: which tokens each slot holds, and which slots predict the next one.

A row is a sequence of slots; slot s holds `lengths[s]` consecutive tokens (0: padding).  All of a
batch is gathered at once; nothing loops over segments.

Where merged columns are gists, a row is read as columns: every token, and behind the last token of
a segment of several the column that holds them all.  A token sees its own segment so far and what
stays of earlier ones, their gists or lone tokens; so does a gist, which sees its whole segment.
For tokens a b c d e f cut into lengths [1, 3, 2]:

    column      a   b   c   d  <bcd>  e   f  <ef>
    slot        0   1   1   1   1     2   2   2
    position    0   1   2   3   3     4   5   5

    sees        a   b   c   d  <bcd>  e   f  <ef>
    a           x
    b           x   x
    c           x   x   x
    d           x   x   x   x
    <bcd>       x   x   x   x   x
    e           x               x     x
    f           x               x     x   x
    <ef>        x               x     x   x   x

Shapes: B rows, L tokens, S slots, K most tokens of a slot, N slots picked, Q columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.generate.batch.masks import slot_positions


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


@dataclass(frozen=True)
class GistColumns:
    """Rows read with gists: what each column is, where it stands, and what it sees."""

    tokens_BQ: Tensor
    """The token of each column; of a gist, the last of its segment."""
    slots_BQ: Tensor
    is_gist_BQ: Tensor
    positions_BQ: Tensor
    sees_BQQ: Tensor
    last_BS: Tensor
    """Column of each slot's last token."""


def with_gist_columns(batch: SlotBatch) -> GistColumns:
    """Lay out rows with a gist behind each segment of several tokens."""
    lengths_BS = batch.lengths_BS
    num_rows, num_slots = lengths_BS.shape
    widths_BS = lengths_BS + (lengths_BS > 1)
    ends_BS = widths_BS.cumsum(-1)
    place_Q = torch.arange(int(ends_BS[:, -1].max()), device=lengths_BS.device)
    slots_BQ = torch.searchsorted(ends_BS, place_Q.expand(num_rows, -1).contiguous(), right=True)
    is_real_BQ = slots_BQ < num_slots
    slots_BQ = slots_BQ.clamp(max=num_slots - 1)
    inside_BQ = place_Q - (ends_BS - widths_BS).gather(1, slots_BQ)
    size_BQ = lengths_BS.gather(1, slots_BQ)
    is_gist_BQ = is_real_BQ & (size_BQ > 1) & (inside_BQ == size_BQ)
    inside_BQ = inside_BQ.clamp(max=size_BQ - 1).clamp(min=0)
    token_BQ = (lengths_BS.cumsum(-1) - lengths_BS).gather(1, slots_BQ) + inside_BQ
    tokens_BQ = batch.tokens_BL.gather(1, token_BQ.clamp(max=batch.tokens_BL.shape[1] - 1))
    positions_BS = slot_positions(lengths_BS, documents_BS=batch.documents_BS)
    positions_BQ = positions_BS.gather(1, slots_BQ) - size_BQ + 1 + inside_BQ
    stays_BQ = is_gist_BQ | (size_BQ == 1)
    causal_QQ = place_Q[:, None] >= place_Q
    same_BQQ = slots_BQ[:, :, None] == slots_BQ[:, None]
    sees_BQQ = causal_QQ & is_real_BQ[:, None] & (stays_BQ[:, None] | same_BQQ)
    if batch.documents_BS is not None:
        documents_BQ = batch.documents_BS.gather(1, slots_BQ)
        sees_BQQ = sees_BQQ & (documents_BQ[:, :, None] == documents_BQ[:, None])
    sees_BQQ = sees_BQQ | torch.eye(len(place_Q), dtype=torch.bool, device=place_Q.device)
    last_BS = (ends_BS - 1 - (lengths_BS > 1).long()).clamp(min=0)
    return GistColumns(
        tokens_BQ, slots_BQ, is_gist_BQ, positions_BQ.clamp(min=0), sees_BQQ, last_BS
    )
