"""Low-rank adapters act where something was merged, and nowhere else."""

import torch
from torch.nn import functional as F  # noqa: N812

from helpers.toys import tiny_llama
from lightstride.smash.model.adapters import GatedAdapters, merged_at


def test_adapters_act_at_marked_positions_alone() -> None:
    model = tiny_llama()
    adapters = GatedAdapters(list(model.model.layers), rank=3, alpha=6.0)
    ids = torch.randint(0, 256, (2, 7))
    before = model(ids).logits
    with torch.no_grad():
        for up in adapters.up.values():
            up.copy_(torch.randn(up.shape) * 0.3)
    assert torch.equal(model(ids).logits, before)
    nowhere = torch.zeros(2, 7, dtype=torch.bool)
    with merged_at(nowhere):
        assert torch.equal(model(ids).logits, before)
    somewhere = nowhere.clone()
    somewhere[0, 4] = True
    with merged_at(somewhere):
        after = model(ids).logits
    assert torch.equal(after[0, :4], before[0, :4])
    assert torch.equal(after[1], before[1])
    assert (after[0, 4:] - before[0, 4:]).abs().amax(-1).min() > 1e-4
    assert torch.equal(model(ids).logits, before)


def test_an_adapter_adds_its_low_rank_product() -> None:
    block = torch.nn.Sequential(torch.nn.Linear(5, 6))
    adapters = GatedAdapters([block], rank=2, alpha=4.0)
    (key,) = adapters.down
    with torch.no_grad():
        adapters.up[key].copy_(torch.randn(6, 2))
    inputs = torch.randn(1, 3, 5)
    with merged_at(torch.ones(1, 3, dtype=torch.bool)):
        found = block(inputs)
    change = 2.0 * adapters.up[key] @ adapters.down[key]
    torch.testing.assert_close(found, F.linear(inputs, block[0].weight + change, block[0].bias))
