"""The rules of many heads at once say what each keep says alone."""

import math

import pytest
import torch

from lightstride.memory.held.rules import Changes, HeadRules
from lightstride.memory.masks import stays, visible, weighed
from lightstride.memory.plan import ALL, Keep, MemoryPlan
from lightstride.memory.scores import chooses

BLOCKS = (
    tuple(map(Keep.parse, ("all", "16/0", "20/best2"))),
    (),
    tuple(map(Keep.parse, ("24/4x3", "33/slide", "32/best8"))),
    (ALL,),
)
PLAN = MemoryPlan(blocks=BLOCKS, head_dim=8, sinks=3)


@pytest.mark.parametrize("sliding", [(None,) * 4, (None, None, 30, 9)])
def test_many_heads_at_once_are_each_alone(sliding: tuple[int | None, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    rules = HeadRules.of_plan(PLAN, sliding, torch.device("cpu"))
    positions_BW = torch.stack([torch.randperm(80, generator=generator)[:50] for _ in range(2)])
    queries_BQ = torch.tensor([[5, 17, 18, 60], [19, 37, 79, 80]])
    chosen_BFW = torch.rand(2, PLAN.num_heads, 50, generator=generator) < 0.5
    found_BFQW = rules.added(queries_BQ, positions_BW, chosen_BFW, torch.float32)
    heads = [(keep, own) for keeps, own in zip(BLOCKS, sliding, strict=True) for keep in keeps]
    for head, (keep, own) in enumerate(heads):
        seen_BQW = visible(keep, queries_BQ, positions_BW, PLAN.sinks, own)
        if chooses(keep, own):
            ruled_BW = stays(keep, positions_BW, PLAN.sinks)
            young_BQW = seen_BQW & ~ruled_BW[:, None] | visible(
                Keep(0, keep.window), queries_BQ, positions_BW, 0, own
            )
            seen_BQW = young_BQW | chosen_BFW[:, head, None]
        added_BQW = weighed(keep, queries_BQ, positions_BW, PLAN.sinks, seen_BQW)
        if not added_BQW.is_floating_point():
            added_BQW = torch.zeros(added_BQW.shape).masked_fill(~added_BQW, -math.inf)
        torch.testing.assert_close(found_BFQW[:, head], added_BQW)
        part = rules.part(slice(head, head + 1))
        alone_BFQW = part.added(
            queries_BQ, positions_BW, chosen_BFW[:, head : head + 1], torch.float32
        )
        assert torch.equal(alone_BFQW[:, 0], found_BFQW[:, head])


@pytest.mark.parametrize("sliding", [(None,) * 4, (None, None, 30, 9)])
def test_nothing_changes_before_it_is_said_to(sliding: tuple[int | None, ...]) -> None:
    rules = HeadRules.of_plan(PLAN, sliding, torch.device("cpu"))
    changes = Changes(PLAN, sliding)
    positions_1W = torch.arange(150)[None]
    chosen_1FW = torch.zeros(1, PLAN.num_heads, 150, dtype=torch.bool)
    seen_FQW = rules.seen(positions_1W, positions_1W, chosen_1FW)[0]
    for query in range(149):
        same = torch.equal(seen_FQW[:, query, : query + 1], seen_FQW[:, query + 1, : query + 1])
        assert same or changes.after(query) == query + 1
        assert changes.after(query) > query
