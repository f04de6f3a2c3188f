"""Memory plans of toys, and a slow twin of a cache: the whole text, masked."""

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import heads_of, read_by
from lightstride.memory.cache import MemoryCache
from lightstride.memory.entries import KvType
from lightstride.memory.plan import Keep, MemoryPlan

KEEPS = tuple(Keep.parse(text) for text in ("all", "16/0", "20/2", "24/4x3", "32/8", "24/8x2"))


def mixed_plan(model: PreTrainedModel, seed: int = 0) -> MemoryPlan:
    """A plan in which heads keep whatever comes."""
    rng = random.Random(seed)
    blocks = tuple(tuple(rng.choice(KEEPS) for _ in range(count)) for count in heads_of(model))
    return MemoryPlan(blocks=blocks, head_dim=8, sinks=3)


def one_row(model: PreTrainedModel, plan: MemoryPlan, kind: KvType = "model") -> MemoryCache:
    """A cache of one row, empty."""
    cache = MemoryCache(model, plan, kind)
    cache.add_row()
    return cache


def read_columns(
    model: PreTrainedModel,
    cache: MemoryCache,
    tokens_BQ: Tensor,
    positions_BQ: Tensor,
    sees_BQQ: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Logits of new columns of the rows from `start` on, (B, Q, V); causal by default."""
    num_rows, num_new = tokens_BQ.shape
    if sees_BQQ is None:
        causal_QQ = torch.ones(num_new, num_new).tril().bool()
        sees_BQQ = causal_QQ.expand(num_rows, num_new, num_new)
    cache.open(slice(start, start + num_rows), positions_BQ, sees_BQQ)
    with torch.inference_mode(), read_by(model, cache):
        output = model(input_ids=tokens_BQ, position_ids=positions_BQ, use_cache=False)
    return output.logits
