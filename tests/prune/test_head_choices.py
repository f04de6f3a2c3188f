"""Operations of choosing heads."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightstride.models.shapes import AttentionShape
from lightstride.prune.cut import choose_units
from lightstride.prune.cut.choose_units import PartialCut
from lightstride.prune.head_choices import choice_operations


@pytest.mark.parametrize("wanted", [(1, 2, 3), (2, 3), (3,)])
@pytest.mark.parametrize(("exhaustive", "tree"), [(128, 8), (128, 1), (0, 8)])
def test_choosing_heads_is_counted_as_it_is_done(
    exhaustive: int, tree: int, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightstride.prune.head_choices.MOST_TREE_GROUPS", tree)
    monkeypatch.setattr(choose_units, "MOST_TREE_GROUPS", tree)
    monkeypatch.setattr("lightstride.prune.head_choices.EXHAUSTIVE", exhaustive)
    done: list[float] = []
    cost, removing = choose_units.removal_cost, PartialCut.removing

    def costed(weight_OI: Tensor, inverse_II: Tensor, removed_R: Tensor) -> float:
        done.append(len(removed_R) ** 3 / 3 + len(removed_R) ** 2 * len(weight_OI))
        return cost(weight_OI, inverse_II, removed_R)

    def removed(cut: PartialCut, heads: Sequence[tuple[int, int]]) -> PartialCut:
        smaller = removing(cut, heads)
        rest, outputs = len(smaller.inverse_KK), len(cut.weight_OK)
        gone = len(cut.inverse_KK) - rest
        done.append(gone**3 / 3 + gone**2 * (outputs + rest) + 2 * gone * rest * (outputs + rest))
        return smaller

    monkeypatch.setattr(choose_units, "removal_cost", costed)
    monkeypatch.setattr(PartialCut, "removing", removed)
    dense, size = AttentionShape(3, 3), 4
    shapes = [AttentionShape(k, q) for k in (1, 2, 3) for q in wanted]
    rows = torch.randn(100, 9 * size, generator=torch.Generator().manual_seed(0)).double()
    choose_units.choose_heads(
        torch.randn(8, 9 * size).double(),
        torch.linalg.inv(rows.T @ rows),
        shapes,
        dense,
        exhaustive,
    )
    said = choice_operations(dense, shapes, size, 8)
    assert said == pytest.approx(sum(done), rel=1e-9)
