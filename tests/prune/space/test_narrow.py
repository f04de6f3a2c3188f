"""Uniform plans, limits, and the levels around a plan."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.plans import SMOLLM2, space_of, uniform_at
from helpers.spaces import ffn_step
from lightstride.errors import BudgetError
from lightstride.models.shapes import (
    AttentionShape,
    FFNShape,
    Geometry,
    Site,
)
from lightstride.prune.space.narrow import narrow
from lightstride.prune.space.plan import num_parameters, sparsity


def test_uniform_half_is_exactly_half() -> None:
    plan = uniform_at(SMOLLM2, 0.5)
    assert plan.key == "|".join(["2x2,768"] * 30)
    assert sparsity(plan, SMOLLM2) == 0.5


def test_uniform_quarter_is_exactly_a_quarter() -> None:
    plan = uniform_at(SMOLLM2, 0.25)
    assert plan.key == "|".join(["3x2,1152"] * 30)
    assert sparsity(plan, SMOLLM2) == 0.25


@given(st.integers(1, 930))
def test_uniform_never_exceeds_the_limit_and_comes_near(per_mille: int) -> None:
    share = per_mille / 1000
    plan = uniform_at(SMOLLM2, share)
    space = space_of(SMOLLM2)
    limit = (1 - Fraction(per_mille, 1000)) * SMOLLM2.prunable_parameters
    assert plan in space
    assert space.total(plan) <= limit
    assert limit - space.total(plan) < 30 * ffn_step(space) or share < 0.03
    assert num_parameters(plan, SMOLLM2) == space.total(plan)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, 0.99])
def test_impossible_budgets_say_what_is_possible(share: float) -> None:
    with pytest.raises(BudgetError, match=r"between 0\.0000 and 0\.9427 is possible"):
        uniform_at(SMOLLM2, share)


def test_levels_step_by_shares_of_the_site() -> None:
    space = space_of(SMOLLM2)
    centre = uniform_at(SMOLLM2, 0.5)
    coarse = narrow(space, centre, Fraction(1, 8))
    widths = [shape.num_channels for shape in coarse.choices[Site(3, "ffn")]]  # type: ignore[union-attr]
    assert widths == [32, 192, 384, 576, 736, 768, 800, 960, 1152, 1344, 1536]
    assert len(coarse.choices[Site(3, "attention")]) == 9
    assert centre in coarse
    fine = narrow(space, centre, Fraction(1, 64))
    widths = [shape.num_channels for shape in fine.choices[Site(3, "ffn")]]  # type: ignore[union-attr]
    assert widths == [672, 704, 736, 768, 800, 832, 864]
    attention = fine.choices[Site(3, "attention")]
    assert attention == tuple(
        AttentionShape(*pair) for pair in [(1, 3), (2, 1), (2, 2), (3, 1), (2, 3)]
    )


def test_costs_survive_narrowing() -> None:
    space = space_of(SMOLLM2)
    centre = uniform_at(SMOLLM2, 0.25)
    narrowed = narrow(space, centre, Fraction(1, 16))
    for site in narrowed.sites:
        assert list(narrowed.costs[site]) == sorted(narrowed.costs[site])
        for shape in narrowed.choices[site]:
            assert narrowed.cost(site, shape) == SMOLLM2.parameters(shape)


def test_uneven_models_are_cut_by_the_same_share() -> None:
    geometry = Geometry(
        family="llama",
        hidden_size=64,
        head_dim=8,
        vocab_size=260,
        tied_head=True,
        attention=(AttentionShape(4, 2), AttentionShape(2, 2)),
        ffn=(FFNShape(256), FFNShape(128)),
        query_head_parameters=1024,
        kv_head_parameters=1024,
        channel_parameters=192,
    )
    plan = uniform_at(geometry, 0.5)
    assert plan.shapes[Site(0, "ffn")] == FFNShape(128)
    assert plan.shapes[Site(1, "ffn")] == FFNShape(64)
    assert plan.shapes[Site(0, "attention")] == AttentionShape(2, 2)
    assert plan.shapes[Site(1, "attention")] == AttentionShape(1, 2)


def test_many_attention_shapes_are_thinned() -> None:
    geometry = replace(SMOLLM2, attention=(AttentionShape(8, 4),) * 30)
    space = space_of(geometry)
    centre = uniform_at(geometry, 0.5)
    site = Site(0, "attention")
    shapes = narrow(space, centre, Fraction(1, 8)).choices[site]
    assert len(space.choices[site]) == 32
    assert 9 <= len(shapes) <= 20
    assert centre.shapes[site] in shapes
    fine = narrow(space, centre, Fraction(1, 64)).choices[site]
    assert 3 <= len(fine) < len(shapes)
