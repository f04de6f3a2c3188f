"""Heads of all layers choose at once what each layer's would."""

import torch

from helpers.memory_toys import toy_scores
from lightstride.memory.held.choice import Chooser
from lightstride.memory.layout import Chunks
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.scores import best_places

BLOCKS = (
    tuple(map(Keep.parse, ("64/best8", "all", "20/best2"))),
    tuple(map(Keep.parse, ("32/best8", "16/0"))),
)


def test_all_layers_at_once_are_head_by_head() -> None:
    plan = MemoryPlan(blocks=BLOCKS, head_dim=8, sinks=3)
    scores = toy_scores(plan)
    chooser = Chooser(plan, scores, (None, None), torch.device("cpu"))
    assert chooser.border(50) == 16
    assert not chooser.chooses(slice(4, 5))
    generator = torch.Generator().manual_seed(1)
    key_NFWd, value_NFWd = torch.randn(2, 2, plan.num_heads, 16, 8, generator=generator)
    there_NW = torch.rand(2, 16, generator=generator) < 0.8
    first_N1 = there_NW.to(torch.int8).argmax(-1, keepdim=True)
    stands_for_NW = torch.where(there_NW, torch.arange(16), first_N1)
    positions_NW = torch.arange(32).view(2, 16)
    columns_NW = torch.zeros_like(positions_NW)
    chunks = Chunks(torch.tensor([[0], [1]]), columns_NW, positions_NW, there_NW, stands_for_NW)
    found_NFW = chooser.best(slice(None), key_NFWd, value_NFWd, chunks)
    for head, (layer, own) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))):
        keep = plan.blocks[layer][own]
        one = slice(head, head + 1)
        score_NGW = scores.of(layer, torch.tensor([own]), key_NFWd[:, one], value_NFWd[:, one])
        if keep.choice != "best":
            assert not found_NFW[:, head].any()
            continue
        places = positions_NW[:, None], keep, plan.sinks, there_NW[:, None]
        best_NW = best_places(score_NGW, *places)[:, 0].gather(-1, stands_for_NW)
        assert torch.equal(found_NFW[:, head], best_NW)
        assert torch.equal(
            chooser.best(one, key_NFWd[:, one], value_NFWd[:, one], chunks)[:, 0], best_NW
        )
