"""Attention group by group: KV heads of one layer that keep different entries.

transformers asks a registered function for each layer's attention.  Ours hands queries, keys and
values to whatever reads them at the time: a cache by head group, or the slow twin that masks.

Shapes: B rows, H query heads, G KV heads, R queries a KV head, Q new columns, W columns, d head
size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for

ATTENTION = "lightstride_memory"
FOLDED = 32
"""Most new columns whose query heads are read as further columns of their KV head."""


class Reader(Protocol):
    """What a layer's queries attend to."""

    def read(
        self, layer: int, query_BHQd: Tensor, key_BGQd: Tensor, value_BGQd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, Q, d), given the new columns of a layer."""
        ...


CURRENT: ContextVar[Reader] = ContextVar("the reader of the forward that runs")


@contextmanager
def read_by(model: PreTrainedModel, reader: Reader) -> Iterator[None]:
    """Inside this context the model's attention is the reader's."""
    config = model.config
    before = config._attn_implementation
    token = CURRENT.set(reader)
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
        CURRENT.reset(token)


def attention(
    module: nn.Module,
    query_BHQd: Tensor,
    key_BGQd: Tensor,
    value_BGQd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls; outputs come back as (B, Q, H, d)."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query_BHQd.shape[-1] ** -0.5 if scaling is None else scaling
    output = CURRENT.get().read(layer, query_BHQd, key_BGQd, value_BGQd, scale)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)


def attend(
    query_BHQd: Tensor, key_BGWd: Tensor, value_BGWd: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attention of some KV heads' queries, shape (B, H, Q, d); None sees every column.

    The mask is of all heads, (B, Q, W), or of each KV head, (B, G, Q, W), or folded already.  One
    that is not of booleans is added to logits.
    """
    folded = folded_queries(query_BHQd, key_BGWd)
    if mask is not None:
        if mask.dim() == 3:
            mask = mask[:, None]
        if folded > 1 and 1 < mask.shape[2] == query_BHQd.shape[2]:
            mask = torch.cat([mask] * folded, 2)
        elif folded == 1 and mask.shape[1] > 1:
            mask = mask.repeat_interleave(query_BHQd.shape[1] // key_BGWd.shape[1], dim=1)
        if mask.is_floating_point():
            mask = mask.to(query_BHQd.dtype)
    return grouped_attention(query_BHQd, key_BGWd, value_BGWd, mask, scale, folded)


def folded_queries(query_BHQd: Tensor, key_BGWd: Tensor) -> int:
    """Query heads of a KV head that are to be taken for further columns of it; 1: none."""
    shared = query_BHQd.shape[1] // key_BGWd.shape[1]
    return shared if query_BHQd.shape[2] <= FOLDED else 1


def grouped_attention(
    query_BHQd: Tensor,
    key_BGWd: Tensor,
    value_BGWd: Tensor,
    mask: Tensor | None,
    scale: float,
    folded: int,
    *,
    is_causal: bool = False,
) -> Tensor:
    """The heads' outputs, shape (B, H, Q, d); each KV head is read once for all its queries.

    Of few columns so many query heads are `folded` into columns, as many as the mask then has; else
    the kernel shares KV heads.
    """
    num_rows, num_heads, num_new, size = query_BHQd.shape
    groups = key_BGWd.shape[1]
    output = nn.functional.scaled_dot_product_attention(
        query_BHQd.reshape(num_rows, num_heads // folded, folded * num_new, size),
        key_BGWd,
        value_BGWd,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=num_heads != groups * folded,
    )
    return output.reshape(num_rows, num_heads, num_new, size)


def heads_of(model: PreTrainedModel) -> list[int]:
    """KV heads of each block; 0 where a block has no attention."""
    geometry = adapter_for(model.config).geometry(model.config)
    return [shape.num_kv_heads for shape in geometry.attention]


def sliding_of(model: PreTrainedModel) -> list[int | None]:
    """The model's own window of each block, None where it has none."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * len(heads_of(model))
    return [window if kind == "sliding_attention" else None for kind in kinds]


def check_readable(model: PreTrainedModel) -> None:
    """Refuse, with ModelError, attention that cannot be computed head by head."""
    config = model.config
    for name in ("attn_logit_softcapping", "alibi"):
        if getattr(config, name, None):
            raise ModelError(
                f"the attention of {config.model_type} cannot be split by head: it has {name}"
            )


def group_slices(heads: list[int], shared: int) -> tuple[Tensor, Tensor]:
    """Indices of some KV heads, and of their query heads, group by group."""
    kv_G = torch.tensor(heads)
    return kv_G, (kv_G[:, None] * shared + torch.arange(shared)).flatten()
