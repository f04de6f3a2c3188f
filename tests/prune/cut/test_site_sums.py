"""Sums of experts are those over the tokens that each was sent."""

import pytest
import torch

from lightstride.prune.cut.site_sums import AllSums, ShardSums, SiteInputs

INPUTS = SiteInputs(num_inputs=12, num_experts=3, experts_per_token=2)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_each_expert_sums_its_own_tokens(num_shards: int) -> None:
    torch.manual_seed(0)
    rows_TI, errors_TO = torch.randn(30, 12), torch.randn(30, 5)
    away_T = torch.arange(30) % 3
    for expert in range(3):
        rows_TI[away_T == expert, 4 * expert : 4 * expert + 4] = 0
    rows_TI[:, 8:] = 0
    sums = AllSums(num_shards, INPUTS)
    for shard, part in enumerate(torch.arange(30).chunk(num_shards)):
        own = ShardSums(INPUTS, 5, torch.device("cpu"))
        own.add(rows_TI[part], errors_TO[part])
        sums.add(shard, own)
    total = sums.total()
    assert total is not None
    assert total.drift_IO is not None
    assert total.tokens_E is not None
    assert total.tokens_E.tolist() == [20, 20, 0]
    whole_II = rows_TI.T @ rows_TI
    for expert in range(3):
        part = slice(4 * expert, 4 * expert + 4)
        torch.testing.assert_close(total.gram[expert], whole_II[part, part])
    torch.testing.assert_close(total.drift_IO, rows_TI.T @ errors_TO / 2)


def test_without_experts_there_is_one_gram_and_nothing_of_what_is_not_asked_for() -> None:
    rows_TI = torch.randn(30, 12)
    inputs = SiteInputs(12)
    own, sums = ShardSums(inputs, 0, torch.device("cpu")), AllSums(1, inputs)
    own.add(rows_TI, rows_TI.new_zeros(0, 0))
    sums.add(0, own)
    total = sums.total()
    assert total is not None
    torch.testing.assert_close(total.gram, rows_TI.T @ rows_TI, atol=1e-4, rtol=1e-4)
    assert total.drift_IO is total.tokens_E is None
