"""Attention of few new columns in which each KV head is read once, for all of its query heads.

torch's kernel on a CPU reads keys and values anew for every query head, and does not do better
when they are shared.  Query heads taken for further columns of their KV head are the same
computation (16 rows of 150 entries, 9 heads on 3: 0.36 ms a layer where it was 2.25).

Shapes: B rows, H query heads, G KV heads, Q new columns of a row, N of all rows, W columns, d head
size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightstride.generate.batch.alike import attend_alike, fill_queries, filled_entries
from lightstride.generate.batch.cache import FlatPlaces
from lightstride.generate.batch.segments import Segment
from lightstride.memory.attention import folded_queries, grouped_attention

NAME = "lightstride_folded"
Masks = dict[tuple[int, int, torch.dtype, int], tuple[Tensor | None, Tensor]]


@dataclass(frozen=True)
class RowLayout:
    """How the rows of a forward are laid out."""

    segments: Sequence[Segment]
    flat: FlatPlaces | None = None
    """Where new columns belong, if those of all rows stand in one."""
    rounds_alike: bool = False
    """Whether attention rounds alike for any number of columns (`alike.py`)."""


LAYOUT: ContextVar[RowLayout | None] = ContextVar("the rows of the forward that runs")
MASKS: ContextVar[Masks] = ContextVar("masks of the forward that runs, by mask, share and dtype")


def can_fold(model: PreTrainedModel) -> bool:
    """Whether the model's attention is one that is replaced here."""
    return bool(model.config._attn_implementation == "sdpa")


@contextmanager
def folded_heads(model: PreTrainedModel, layout: RowLayout | None = None) -> Iterator[None]:
    """Inside this context the model's sdpa attention is `attention`; any other stays as it is."""
    if not can_fold(model):
        yield
        return
    config = model.config
    before = config._attn_implementation
    tokens = MASKS.set({}), LAYOUT.set(layout)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        MASKS.reset(tokens[0])
        LAYOUT.reset(tokens[1])


def attention(
    module: nn.Module,
    query_BHQd: Tensor,
    key_BGWd: Tensor,
    value_BGWd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls; outputs come back as (B, Q, H, d).

    Rows whose columns stand in one, (1, H, N, d), are taken apart and put together again.
    """
    scale = query_BHQd.shape[-1] ** -0.5 if scaling is None else scaling
    layout = LAYOUT.get()
    if attention_mask is None or layout is None:
        return attend(query_BHQd, key_BGWd, value_BGWd, attention_mask, scale), None
    parts = []
    for each in layout.segments:
        rows = each.rows
        width = filled_entries(each.width) if layout.rounds_alike else each.width
        seen = (key_BGWd[rows, :, :width], value_BGWd[rows, :, :width], attention_mask, scale, each)
        if layout.flat is None:
            parts.append(attend(query_BHQd[rows], *seen))
            continue
        where = layout.flat.rows_N[each.columns] - rows.start, layout.flat.places_N[each.columns]
        num_heads, size = query_BHQd.shape[1], query_BHQd.shape[3]
        query_BQHd = query_BHQd.new_zeros(rows.stop - rows.start, each.num_new, num_heads, size)
        query_BQHd[where] = query_BHQd[0, :, each.columns].transpose(0, 1)
        parts.append(attend(query_BQHd.transpose(1, 2), *seen)[where])
    together = parts[0] if len(parts) == 1 else torch.cat(parts)
    return together if layout.flat is None else together[None], None


def attend(
    query_BHQd: Tensor,
    key_BGWd: Tensor,
    value_BGWd: Tensor,
    sees_B1QW: Tensor | None,
    scale: float,
    segment: Segment | None = None,
) -> Tensor:
    """The heads' outputs, shape (B, Q, H, d).

    Without a mask the new columns are the last ones, and each sees those before it and itself.
    """
    num_new, width = query_BHQd.shape[2], key_BGWd.shape[2]
    layout = LAYOUT.get()
    if layout is not None and layout.rounds_alike:
        folded = folded_queries(query_BHQd, key_BGWd)
        mask_B1RW = fill_queries(mask_of(sees_B1QW, query_BHQd, width, folded, segment))
        num_rows, num_heads, _, size = query_BHQd.shape
        query_BGRd = query_BHQd.reshape(num_rows, num_heads // folded, folded * num_new, size)
        output_BGRd = attend_alike(query_BGRd, key_BGWd, value_BGWd, mask_B1RW, scale)
        return output_BGRd.reshape(num_rows, num_heads, num_new, size).transpose(1, 2)
    is_causal = sees_B1QW is None and num_new == width > 1
    folded = 1 if is_causal else folded_queries(query_BHQd, key_BGWd)
    mask = None
    if sees_B1QW is not None or (num_new > 1 and not is_causal):
        mask = mask_of(sees_B1QW, query_BHQd, width, folded, segment)
    return grouped_attention(
        query_BHQd, key_BGWd, value_BGWd, mask, scale, folded, is_causal=is_causal
    ).transpose(1, 2)


def mask_of(
    sees_B1QW: Tensor | None,
    query_BHQd: Tensor,
    width: int,
    folded: int,
    segment: Segment | None,
) -> Tensor:
    """The mask to be added, for so many query heads of a KV head; made once in a forward."""
    masks = MASKS.get()
    key = (id(sees_B1QW), folded, query_BHQd.dtype, -1 if segment is None else segment.rows.start)
    if key not in masks:
        num_new = query_BHQd.shape[2]
        if sees_B1QW is None:
            ones_QW = torch.ones(num_new, width, dtype=torch.bool, device=query_BHQd.device)
            sees = ones_QW.tril(width - num_new)[None, None]
        elif segment is None:
            sees = sees_B1QW
        else:
            sees = sees_B1QW[segment.rows, :, :num_new, :width]
        added = torch.zeros_like(sees, dtype=query_BHQd.dtype).masked_fill(~sees, -torch.inf)
        masks[key] = sees_B1QW, added.repeat(1, 1, folded, 1)  # the id stays the mask's own
    return masks[key][1]


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
