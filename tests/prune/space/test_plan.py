"""Spaces, plans, levels and limits: exact, snapped, and refused when impossible."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.spaces import ffn_step
from lightstride.errors import BudgetError, ConfigError, WorkError
from lightstride.models.shapes import (
    AttentionKept,
    AttentionShape,
    FFNKept,
    FFNShape,
    Geometry,
    Site,
)
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.narrow import limit_for, narrow, uniform_plan
from lightstride.prune.space.plan import Plan, Space, dense_plan, num_parameters, sparsity
from lightstride.prune.space.targets import TARGETS, Target, for_model, named_target

SMOLLM2 = Geometry(
    family="llama",
    hidden_size=576,
    head_dim=64,
    vocab_size=49152,
    tied_head=True,
    attention=(AttentionShape(3, 3),) * 30,
    ffn=(FFNShape(1536),) * 30,
    query_head_parameters=2 * 64 * 576,
    kv_head_parameters=2 * 64 * 576,
    channel_parameters=3 * 576,
)


def space_of(geometry: Geometry, target: Target = TARGETS["any"]) -> Space:
    return build_space(geometry, target, parameter_cost(geometry))


def uniform_at(geometry: Geometry, share: float, target: Target = TARGETS["any"]) -> Plan:
    space = space_of(geometry, target)
    limit = limit_for(share, dense_cost(geometry, parameter_cost(geometry)), space)
    return uniform_plan(space, share, limit)


def test_true_counts_of_smollm2() -> None:
    assert SMOLLM2.prunable_parameters == 30 * 3_538_944
    space = space_of(SMOLLM2)
    site = Site(0, "attention")
    assert space.cost(site, AttentionShape(3, 1)) == space.cost(site, AttentionShape(2, 2))
    assert {AttentionShape(3, 1), AttentionShape(2, 2)} <= set(space.choices[site])


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


def test_plan_round_trip_with_kept_units() -> None:
    plan = Plan(
        {Site(0, "attention"): AttentionShape(2, 2), Site(0, "ffn"): FFNShape(3)},
        {
            Site(0, "attention"): AttentionKept((0, 2), ((0, 2), (1, 2))),
            Site(0, "ffn"): FFNKept((0, 5, 77)),
        },
    )
    document = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(document) == plan
    assert Plan.from_json(Plan(plan.shapes).to_json()).kept is None
    assert document["kept"]["0.ffn"] == f"{1 + (1 << 5) + (1 << 77):x}"


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"version": 2, "shapes": {}},
        {"version": 1, "shapes": {"0.conv": "3"}},
        {"version": 1, "shapes": {"0.ffn": "three"}},
    ],
)
def test_what_is_not_a_plan_is_refused(document: object) -> None:
    with pytest.raises(WorkError):
        Plan.from_json(document)


def test_equal_shapes_have_equal_keys_whatever_their_order() -> None:
    plan = uniform_at(SMOLLM2, 0.5)
    backwards = Plan(dict(reversed(plan.shapes.items())))
    assert backwards.key == plan.key
    other = plan.replace({Site(29, "ffn"): FFNShape(800)})
    assert other.key != plan.key


def test_targets_narrow_the_space() -> None:
    packed = space_of(SMOLLM2, named_target("gguf", channel_multiple=256))
    assert [s.num_channels for s in packed.choices[Site(0, "ffn")]] == [
        256 * i for i in range(1, 7)
    ]  # type: ignore[union-attr]
    decilm = space_of(SMOLLM2, TARGETS["decilm"])
    assert decilm.choices[Site(0, "attention")] == (AttentionShape(3, 3),)
    listed = Target(name="x", head_shapes=(AttentionShape(2, 2),))
    assert listed.shapes(AttentionShape(3, 3)) == (AttentionShape(2, 2), AttentionShape(3, 3))
    split = Target(name="x", tensor_parallel=2)
    assert all(s.num_kv_heads % 2 == 0 for s in split.shapes(AttentionShape(8, 4)))  # type: ignore[union-attr]
    assert split.shapes(FFNShape(100)) == tuple(map(FFNShape, (32, 64, 96, 100)))


def test_a_target_that_allows_nothing_is_an_error() -> None:
    with pytest.raises(BudgetError, match="allows no shape"):
        space_of(SMOLLM2, named_target("any", tensor_parallel=5))


def test_bad_targets() -> None:
    with pytest.raises(ConfigError, match="no target is called 'onnx'"):
        named_target("onnx")
    with pytest.raises(ConfigError, match="multiples of 256"):
        named_target("decilm", channel_multiple=64)
    with pytest.raises(ConfigError, match="not >= 1"):
        Target(name="x", channel_multiple=0)


@pytest.mark.parametrize("name", ["any", "gguf"])
def test_llama_cpp_narrows_some_families(name: str) -> None:
    target = TARGETS[name]
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        assert for_model(target, replace(SMOLLM2, family=family)) == target
    assert for_model(target, replace(SMOLLM2, family="gemma3")).uniform
    assert not for_model(target, replace(SMOLLM2, family="gemma3")).heads_fixed
    assert for_model(target, replace(SMOLLM2, family="qwen3", tied_head=False)).uniform
    phi3 = for_model(target, replace(SMOLLM2, family="phi3"))
    assert phi3.uniform
    assert phi3.heads_fixed
    for other in ("hf", "vllm", "uniform"):
        assert for_model(TARGETS[other], replace(SMOLLM2, family="phi3")) == TARGETS[other]


def test_engines_without_the_family_are_refused() -> None:
    opt = replace(SMOLLM2, family="opt")
    assert for_model(TARGETS["any"], opt) == TARGETS["any"]
    with pytest.raises(ConfigError, match=r"llama\.cpp does not run opt"):
        for_model(TARGETS["gguf"], opt)
    with pytest.raises(ConfigError, match="decilm runs llama, mistral, qwen2, not opt"):
        for_model(TARGETS["decilm"], opt)


def test_dense_plan_is_the_largest() -> None:
    plan = dense_plan(SMOLLM2)
    space = space_of(SMOLLM2)
    assert space.total(plan) == space.largest == SMOLLM2.prunable_parameters
    assert sparsity(plan, SMOLLM2) == 0.0


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
