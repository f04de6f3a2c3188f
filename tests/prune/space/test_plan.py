"""Plans: counts, keys, and what is not one."""

import json

import pytest

from helpers.plans import SMOLLM2, space_of, uniform_at
from lightstride.errors import WorkError
from lightstride.models.shapes import (
    AttentionKept,
    AttentionShape,
    FFNKept,
    FFNShape,
    Site,
)
from lightstride.prune.space.plan import Plan, dense_plan, sparsity


def test_true_counts_of_smollm2() -> None:
    assert SMOLLM2.prunable_parameters == 30 * 3_538_944
    space = space_of(SMOLLM2)
    site = Site(0, "attention")
    assert space.cost(site, AttentionShape(3, 1)) == space.cost(site, AttentionShape(2, 2))
    assert {AttentionShape(3, 1), AttentionShape(2, 2)} <= set(space.choices[site])


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


def test_dense_plan_is_the_largest() -> None:
    plan = dense_plan(SMOLLM2)
    space = space_of(SMOLLM2)
    assert space.total(plan) == space.largest == SMOLLM2.prunable_parameters
    assert sparsity(plan, SMOLLM2) == 0.0
