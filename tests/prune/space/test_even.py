"""The same widths in every block: all such plans within a budget, and their race."""

import pytest

from helpers.spaces import Weighted, toy
from lightstride.errors import BudgetError
from lightstride.prune.space.even import even_plans
from lightstride.search.evaluation_log import EvaluationLog
from lightstride.search.race import race


def test_even_plans_race() -> None:
    space = toy(4)
    plans = even_plans(space, space.largest // 2)
    assert len(plans) == len({plan.shapes[space.sites[0]] for plan in plans}) >= 7
    for plan in plans:
        assert len({plan.shapes[site] for site in space.sites}) == 2
        assert space.total(plan) <= space.largest // 2
    fitness = Weighted(space)
    found = race(even_plans(space, space.largest // 2), EvaluationLog(fitness), 1024)
    assert found.fitness == min(fitness.loss(plan) for plan in plans)
    assert found.tokens == len(plans) * 128 + 3 * 1024
    with pytest.raises(BudgetError, match="same widths"):
        even_plans(space, 1)
