"""Which units go: costs, and orders against brute force."""

import itertools

import pytest
import torch

from helpers.layers import HEAD, brute_loss, gram, layer
from lightstride.errors import ConfigError
from lightstride.models.shapes import (
    AttentionKept,
    AttentionShape,
    FFNShape,
)
from lightstride.prune.cut import choose_units
from lightstride.prune.cut.choose_units import (
    PartialCut,
    cholesky,
    choose_heads,
    removal_cost,
    removal_order,
)
from lightstride.prune.cut.refit import (
    add_ridge,
    kept_inputs,
    prune_ffn,
    refit,
)


@pytest.mark.parametrize("removed", [[3], [0, 5], [1, 2, 7]])
def test_removal_cost_is_the_loss_of_the_best_refit(removed: list[int]) -> None:
    weight_OI, inputs_NI = layer(6, 8)
    inverse_II = torch.cholesky_inverse(cholesky(add_ridge(gram(inputs_NI), 0.01)[0]))
    kept = [i for i in range(8) if i not in removed]
    cost = removal_cost(weight_OI.double(), inverse_II, torch.tensor(removed))
    assert cost == pytest.approx(brute_loss(weight_OI, inputs_NI, kept, 0.01), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("chunk", "panel"), [(1, 1), (1, 5), (3, 6), (3, 128)])
def test_removal_order_is_brute_force_greedy(seed: int, chunk: int, panel: int) -> None:
    weight_OI, inputs_NI = layer(3, 14, seed=seed)
    inverse_II = torch.cholesky_inverse(cholesky(add_ridge(gram(inputs_NI), 0.01)[0]))
    order = removal_order(weight_OI, inverse_II, 12, chunk, panel).tolist()
    left = list(range(14))
    for first in range(0, 12, chunk):
        gone = order[first : first + chunk]
        losses = {
            c: brute_loss(weight_OI, inputs_NI, [i for i in left if i != c], 0.01) for c in left
        }
        assert gone == sorted(left, key=losses.__getitem__)[:chunk]
        left = [channel for channel in left if channel not in gone]
    assert sorted(order[12:]) == left


def test_costs_along_a_path_add_up_to_the_refit_loss() -> None:
    dense = AttentionShape(3, 3)
    weight_OI, inputs_NI = layer(8, dense.num_heads * HEAD)
    inverse_II = torch.cholesky_inverse(cholesky(add_ridge(gram(inputs_NI), 0.01)[0]))
    heads = tuple(itertools.product(range(3), range(3)))
    start = PartialCut(weight_OI.double(), inverse_II, heads)
    cut = start.removing(heads[3:6]).removing(heads[:1]).removing(heads[7:])
    columns = kept_inputs(cut.kept, dense, HEAD)
    assert columns.tolist() == [*range(4, 12), *range(24, 28)]
    expected = brute_loss(weight_OI, inputs_NI, columns.tolist(), 0.01)
    assert cut.cost == pytest.approx(expected, rel=1e-5)
    fitted = refit(weight_OI, add_ridge(gram(inputs_NI), 0.01)[0], columns)
    torch.testing.assert_close(cut.weight_OK, fitted, rtol=1e-6, atol=1e-6)


def test_singular_gram_without_damping_is_refused() -> None:
    weight_OC, inputs_NC = layer(6, 32, tokens=10)
    with pytest.raises(ConfigError, match="damping"):
        prune_ffn(weight_OC, gram(inputs_NC), [FFNShape(16)], damping=0.0)


def test_kept_columns_of_heads() -> None:
    kept = AttentionKept((0, 2), ((1,), (0,)))
    assert kept_inputs(kept, AttentionShape(3, 2), 2).tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queries", [(1, 2), (2,), (1,)])
def test_groups_that_go_one_by_one_are_those_that_go_together(
    seed: int, queries: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = AttentionShape(5, 2)
    weight_OI, inputs_NI = layer(8, dense.num_heads * HEAD, seed=seed)
    inverse_II = torch.cholesky_inverse(cholesky(add_ridge(gram(inputs_NI), 0.01)[0]))
    shapes = [AttentionShape(k, q) for k in (5, 4, 3, 1) for q in queries]

    def chosen(most: int) -> dict[AttentionShape, AttentionKept]:
        monkeypatch.setattr(choose_units, "MOST_TREE_GROUPS", most)
        return choose_heads(weight_OI.double(), inverse_II, shapes, dense, 10_000)

    assert chosen(8) == chosen(1)
    assert {shape for shape in shapes if shape != dense} < set(chosen(8))
