"""Memory plans of toys, and a slow twin of a cache: the whole text, masked."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import heads_of, read_by
from lightstride.memory.cache import Memory, MemoryCache, full_plan
from lightstride.memory.entries import KvType
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.scores import Scores

KEEPS = tuple(
    map(Keep.parse, ("all", "16/0", "20/best2", "24/4x3", "32/best8", "24/8x2", "24/best4"))
)

SLIDING = tuple(map(Keep.parse, ("all", "24/slide", "33/slide", "20/best2")))


def mixed_plan(model: PreTrainedModel, seed: int = 0, keeps: Sequence[Keep] = KEEPS) -> MemoryPlan:
    """A plan in which heads keep whatever comes."""
    rng = random.Random(seed)
    blocks = tuple(tuple(rng.choice(keeps) for _ in range(count)) for count in heads_of(model))
    return replace(full_plan(model), blocks=blocks, sinks=3, base="")


def toy_scores(plan: MemoryPlan, seed: int = 0) -> Scores:
    """Scores of any weights."""
    generator = torch.Generator().manual_seed(seed)
    return Scores([torch.randn(w.shape, generator=generator) for w in Scores.zeros(plan).blocks])


def mixed_memory(
    model: PreTrainedModel, seed: int = 0, kind: KvType = "model", keeps: Sequence[Keep] = KEEPS
) -> Memory:
    """A plan in which heads keep whatever comes, and scores."""
    plan = mixed_plan(model, seed, keeps)
    return Memory(plan, kind, toy_scores(plan, seed))


def one_row(model: PreTrainedModel, memory: Memory) -> MemoryCache:
    """A cache of one row, empty."""
    cache = MemoryCache(model, memory)
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
