"""Experts cut together: the best widths, true losses, and experts that are little known."""

import itertools

import pytest
import torch
from torch import Tensor

from lightstride.models.shapes import FFNKept, FFNShape
from lightstride.prune.cut.expert_cuts import (
    ExpertSettings,
    cheapest_widths,
    prune_experts,
    targets_of_experts,
    with_missing_tokens,
)
from lightstride.prune.cut.refit import prune_ffn

E, W, OUTPUTS = 4, 12, 6
DENSE = FFNShape(E * W, (W,) * E)
SETTINGS = ExpertSettings(experts_per_token=2, step=4)


def inputs(seed: int = 0, sent: tuple[int, ...] = (60, 200, 40, 90)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(W, W, generator=generator)
    return [torch.randn(count, W, generator=generator) @ mix for count in sent]


def grams(rows: list[Tensor]) -> Tensor:
    return torch.stack([each.T @ each for each in rows])


def weights(seed: int = 1) -> Tensor:
    return torch.randn(OUTPUTS, E * W, generator=torch.Generator().manual_seed(seed))


def brute_force(losses_EU: Tensor, least: list[int], num_steps: int) -> float:
    """Least sum of losses over all ways to share out so many steps."""
    ranges = [range(first, losses_EU.shape[1]) for first in least]
    return min(
        sum(float(losses_EU[expert, steps]) for expert, steps in enumerate(way))
        for way in itertools.product(*ranges)
        if sum(way) == num_steps
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_steps", [2, 3, 7, 11, 16])
def test_widths_are_the_best_of_all(seed, num_steps):
    losses_EU = torch.rand(E, 5, generator=torch.Generator().manual_seed(seed)).double()
    losses_EU, _ = losses_EU.sort(dim=1, descending=True)
    few_E = torch.zeros(E, dtype=torch.bool)
    found = cheapest_widths(losses_EU, few_E, 2, num_steps)
    assert sum(found) == num_steps
    dearest = losses_EU[:, 0].argsort(descending=True)[:2].tolist()
    assert all(found[expert] for expert in dearest)
    least = [int(expert in dearest) for expert in range(E)]
    total = sum(float(losses_EU[expert, steps]) for expert, steps in enumerate(found))
    assert total == pytest.approx(brute_force(losses_EU, least, num_steps))


def test_experts_of_few_tokens_stay_while_there_is_room():
    losses_EU = torch.tensor([[9.0, 0], [8.0, 0], [1.0, 0], [0.5, 0]])
    few_E = torch.tensor([False, False, False, True])
    assert cheapest_widths(losses_EU, few_E, 2, 3) == [1, 1, 0, 1]
    assert cheapest_widths(losses_EU, few_E, 2, 2) == [1, 1, 0, 0]


def test_every_level_has_its_channels_and_its_true_loss():
    rows, weight_OI = inputs(), weights()
    gram_EWW, sent_E = grams(rows), torch.tensor([float(len(each)) for each in rows])
    shapes = [FFNShape(width) for width in (8, 20, 36, 48)]
    levels = prune_experts(weight_OI, gram_EWW, sent_E, shapes, DENSE, SETTINGS)
    assert [level.kept.shape for level in levels] == shapes
    assert levels[-1].loss == 0
    assert torch.equal(levels[-1].output_OK, weight_OI)
    assert levels[-1].kept == FFNKept(tuple(range(E * W)), W)
    for level in levels:
        assert isinstance(level.kept, FFNKept)
        assert all(width % 4 == 0 for width in level.kept.widths.values())
        padded_OI = torch.zeros(OUTPUTS, E * W)
        padded_OI[:, list(level.kept.channels)] = level.output_OK
        lost = 0.0
        for expert, rows_TW in enumerate(rows):
            part = slice(expert * W, (expert + 1) * W)
            lost += float((rows_TW @ (weight_OI - padded_OI)[:, part].T).square().sum()) / 2
        assert level.loss == pytest.approx(lost, rel=1e-3, abs=1e-3)
    assert len(levels[0].kept.widths) == 2, "as many experts stay as a token is sent to"


def test_each_expert_is_cut_as_an_ffn_of_its_own():
    rows, weight_OI = inputs(), weights()
    sent_E = torch.full((E,), 1e3)
    [level] = prune_experts(weight_OI, grams(rows), sent_E, [FFNShape(28)], DENSE, SETTINGS)
    assert isinstance(level.kept, FFNKept)
    start = 0
    for expert, width in level.kept.widths.items():
        part = slice(expert * W, (expert + 1) * W)
        [own] = prune_ffn(weight_OI[:, part], grams(rows)[expert], [FFNShape(width)])
        mine = [c - expert * W for c in level.kept.channels if c // W == expert]
        assert tuple(mine) == own.kept.channels
        assert torch.allclose(level.output_OK[:, start : start + width], own.output_OK, atol=1e-5)
        start += width


def test_an_expert_that_saw_nothing_is_cut_by_the_size_of_its_weights():
    rows, weight_OI = inputs(sent=(60, 200, 0, 5)), weights()
    sent_E = torch.tensor([60.0, 200, 0, 5])
    gram_EWW = with_missing_tokens(grams(rows), sent_E)
    assert torch.equal(gram_EWW[:2], grams(rows)[:2])
    added = gram_EWW[2:] - grams(rows)[2:]
    expected = grams(rows).diagonal(dim1=1, dim2=2).sum() / (W * 265)
    for missing, each in zip((12, 7), added, strict=True):
        torch.testing.assert_close(each, torch.eye(W) * missing * expected, atol=1e-2, rtol=1e-4)
    levels = prune_experts(weight_OI, gram_EWW, sent_E, [FFNShape(24)], DENSE, SETTINGS)
    assert isinstance(levels[0].kept, FFNKept)
    assert {2, 3} <= set(levels[0].kept.widths), "it keeps a step"
    third = [channel - 2 * W for channel in levels[0].kept.channels if channel // W == 2]
    lengths_W = weight_OI[:, 2 * W : 3 * W].square().sum(0)
    assert sorted(lengths_W.topk(len(third)).indices.tolist()) == third


def test_nothing_is_known_of_any_expert():
    sent_E = torch.zeros(E)
    gram_EWW = with_missing_tokens(torch.zeros(E, W, W), sent_E)
    [level] = prune_experts(weights(), gram_EWW, sent_E, [FFNShape(24)], DENSE, SETTINGS)
    assert level.output_OK.isfinite().all()
    assert level.kept.shape == FFNShape(24)


def test_targets_undo_a_part_of_the_drift():
    rows, weight_OI = inputs(sent=(200, 200, 200, 200)), weights()
    wanted = [torch.randn(200, OUTPUTS) for _ in range(E)]
    drift_IO = torch.cat([each.T @ error for each, error in zip(rows, wanted, strict=True)])
    found = targets_of_experts(weight_OI, grams(rows), drift_IO, correction=0.5, damping=1e-9)
    for expert, (rows_TW, error_TO) in enumerate(zip(rows, wanted, strict=True)):
        part = slice(expert * W, (expert + 1) * W)
        target_TO = rows_TW @ weight_OI[:, part].T + 0.5 * error_TO
        expected = torch.linalg.lstsq(rows_TW, target_TO).solution.T
        torch.testing.assert_close(found[:, part], expected, atol=1e-3, rtol=1e-3)
