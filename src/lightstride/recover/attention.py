"""Causal attention for learning on a CPU: plain products, and a backward that keeps probabilities.

    S = s Q K^T      P = softmax(S)      O = P V
    dV = P^T dO      dP = dO V^T         dS = P (dP - sum P dP)      dQ = s dS K      dK = s dS^T Q

torch's own attention forgets P and computes it again, in tiles that fill no product: on a CPU its
backward takes more than twice as long for rows of 512.  Here the queries of a KV head stand under
each other, piece by piece, and a piece sees no key that comes after it; P is kept in the inputs'
type, H L (L + C) bytes a row and block in bf16.  The plain twin is torch's own.

Shapes: B rows, H query heads, G KV heads, R queries a KV head, L positions, d head size;
N = B G matrices, C positions of a piece, W positions that it sees, M = R C.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "lightstride_learning"
PIECE = 128
"""Positions of a piece."""


@contextmanager
def plain_products(config: PreTrainedConfig, device: torch.device, length: int) -> Iterator[None]:
    """Inside, the attention of this config's model is ours, where that is the faster and the same.

    Not on accelerators, whose kernels are fast; not where attention caps its scores or has
    windows shorter than the rows.  Rows must be whole: nothing is padded.
    """
    before = config._attn_implementation
    if before == "sdpa" and device.type == "cpu" and is_plain(config, length):
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def is_plain(config: PreTrainedConfig, length: int) -> bool:
    """Whether every position sees all before it, by a softmax of products."""
    window = getattr(config, "sliding_window", None)
    capped = any(getattr(config, name, None) for name in ("attn_logit_softcapping", "alibi"))
    return not capped and (window is None or length <= window)


def learning_attention(
    module: nn.Module,
    query_BHLd: Tensor,
    key_BGLd: Tensor,
    value_BGLd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls; outputs come back as (B, L, H, d)."""
    scale = query_BHLd.shape[-1] ** -0.5 if scaling is None else scaling
    return causal(query_BHLd, key_BGLd, value_BGLd, scale).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, learning_attention)


def causal(query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
    """Every position attends to those up to it; outputs (B, H, L, d)."""
    rows, heads, length, size = query_BHLd.shape
    groups = key_BGLd.shape[1]
    query_NRLd = query_BHLd.reshape(rows * groups, heads // groups, length, size)
    key_NLd, value_NLd = (x.reshape(rows * groups, length, size) for x in (key_BGLd, value_BGLd))
    output_NRLd = Causal.apply(query_NRLd, key_NLd, value_NLd, scale)  # type: ignore[no-untyped-call]
    assert isinstance(output_NRLd, Tensor)
    return output_NRLd.view(rows, heads, length, size)


class Causal(torch.autograd.Function):
    """Attention that remembers its probabilities."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query_NRLd: Tensor,
        key_NLd: Tensor,
        value_NLd: Tensor,
        scale: float,
    ) -> Tensor:
        """The outputs, (N, R, L, d)."""
        output_NRLd = torch.empty_like(query_NRLd, memory_format=torch.contiguous_format)
        size = min(PIECE, key_NLd.shape[1])
        hidden_CC = torch.ones(size, size, dtype=torch.bool, device=key_NLd.device).triu(1)
        kept = []
        for rows in pieces(key_NLd.shape[1]):
            query_NMd = query_NRLd[:, :, rows].flatten(1, 2) * scale
            score_NMW = query_NMd @ key_NLd[:, : rows.stop].mT
            count = rows.stop - rows.start
            last_NRCC = score_NMW.unflatten(1, (-1, count))[..., rows]
            last_NRCC.masked_fill_(hidden_CC[:count, :count], -torch.inf)
            share_NMW = score_NMW.softmax(-1)
            output_NMd = share_NMW @ value_NLd[:, : rows.stop]
            output_NRLd[:, :, rows] = output_NMd.unflatten(1, (-1, count))
            kept.append(share_NMW)
        ctx.save_for_backward(query_NRLd, key_NLd, value_NLd, *kept)
        ctx.scale = scale
        return output_NRLd

    @staticmethod
    def backward(ctx: Any, outer_NRLd: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients of queries, keys and values; those of keys and values are summed in fp32."""
        query_NRLd, key_NLd, value_NLd, *kept = ctx.saved_tensors
        to_query_NRLd = torch.empty_like(query_NRLd)
        to_key_NLd, to_value_NLd = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (key_NLd, value_NLd)
        )
        for rows, share_NMW in zip(pieces(key_NLd.shape[1]), kept, strict=True):
            seen = slice(0, rows.stop)
            outer_NMd = outer_NRLd[:, :, rows].flatten(1, 2)
            to_value_NLd[:, seen] += share_NMW.mT @ outer_NMd
            to_share_NMW = outer_NMd @ value_NLd[:, seen].mT
            to_score_NMW = torch._softmax_backward_data(
                to_share_NMW, share_NMW, -1, share_NMW.dtype
            )
            to_query_NMd = (to_score_NMW @ key_NLd[:, seen]) * ctx.scale
            to_query_NRLd[:, :, rows] = to_query_NMd.unflatten(1, (-1, rows.stop - rows.start))
            query_NMd = query_NRLd[:, :, rows].flatten(1, 2) * ctx.scale
            to_key_NLd[:, seen] += to_score_NMW.mT @ query_NMd
        return to_query_NRLd, to_key_NLd.to(key_NLd), to_value_NLd.to(value_NLd), None


def pieces(length: int) -> Iterator[slice]:
    """The positions, a piece after the other."""
    for start in range(0, length, PIECE):
        yield slice(start, min(start + PIECE, length))
