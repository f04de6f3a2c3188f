"""Norms over all heads: cut rows, their masked twin, and the size that is made good."""

import pytest
import torch
from torch import Tensor

from lightstride.models.families.adapter import SiteWeights
from lightstride.prune.cut.head_norms import cut_norms, masked_norms

ROWS = {"query": torch.tensor([0, 1, 6, 7, 10, 11]), "key": torch.tensor([2, 3])}


def weights(*, bias: bool = False) -> SiteWeights:
    torch.manual_seed(0)
    dense = {"query": torch.randn(12, 5), "key": torch.randn(4, 5), "value": torch.randn(4, 5)}
    dense |= {"query_norm": torch.rand(12) + 0.5, "key_norm": torch.rand(4) + 0.5}
    return dense | ({"query_bias": torch.randn(12), "key_bias": torch.randn(4)} if bias else {})


def normalized(weights: SiteWeights, name: str, inputs_TD: Tensor) -> Tensor:
    rows = inputs_TD @ weights[name].T + weights.get(f"{name}_bias", 0)
    return torch.nn.functional.rms_norm(rows, rows.shape[1:], weights[f"{name}_norm"], eps=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_the_masked_twin_gives_what_is_kept(bias: bool) -> None:
    dense, inputs_TD = weights(bias=bias), torch.randn(7, 5)
    norms = cut_norms(dense, ROWS)
    masked = dense | masked_norms(dense, ROWS)
    for name, rows in ROWS.items():
        narrow = {part: dense[part][rows] for part in (name, f"{name}_bias") if part in dense}
        found = normalized(narrow | norms, name, inputs_TD)
        twin = normalized(masked, name, inputs_TD)
        torch.testing.assert_close(twin[:, rows], found)
        assert not twin[:, [i for i in range(len(dense[name])) if i not in rows]].any()


def test_heads_that_stay_keep_their_usual_size() -> None:
    """Large heads that go would otherwise let the others grow."""
    dense = weights()
    dense["query"][[2, 3, 4, 5, 8, 9]] *= 10
    inputs_TD = torch.randn(500, 5)
    before = normalized(dense, "query", inputs_TD)[:, ROWS["query"]]
    narrow = {"query": dense["query"][ROWS["query"]], **cut_norms(dense, ROWS)}
    after = normalized(narrow, "query", inputs_TD)
    ratio = float(after.square().mean().sqrt() / before.square().mean().sqrt())
    assert 0.7 < ratio < 1.4
    narrow["query_norm"] = dense["query_norm"][ROWS["query"]]
    assert normalized(narrow, "query", inputs_TD).square().mean() > 10 * before.square().mean()


def test_nothing_cut_changes_nothing() -> None:
    dense = weights()
    every = {"query": torch.arange(12), "key": torch.arange(4)}
    assert masked_norms(dense, every) == {}
    assert all(torch.equal(cut, dense[name]) for name, cut in cut_norms(dense, every).items())
    none = {name: torch.arange(0) for name in every}
    assert cut_norms(dense, none) == masked_norms(dense, none) == {}
    del dense["query_norm"], dense["key_norm"]
    assert cut_norms(dense, ROWS) == masked_norms(dense, ROWS) == {}
