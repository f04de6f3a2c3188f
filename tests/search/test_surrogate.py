"""A linear model of the fitness, and its exact optimum."""

import itertools
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightstride.errors import BudgetError
from lightstride.search.surrogate import Observation, PriorSettings, knapsack, posterior


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 100_000))
def test_knapsack_equals_brute_force(seed: int) -> None:
    random = Random(seed)
    costs = [sorted(random.randrange(1, 40) for _ in range(random.randint(1, 4))) for _ in range(4)]
    values = [[random.uniform(-1, 5) for _ in site] for site in costs]
    limit = sum(site[0] for site in costs) + random.randrange(60)
    levels = knapsack(costs, values, limit)

    def total(table: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
        return sum(site[level] for site, level in zip(table, chosen, strict=True))

    every = itertools.product(*(range(len(site)) for site in costs))
    best = min(total(values, each) for each in every if total(costs, each) <= limit)
    assert total(costs, levels) <= limit
    assert total(values, levels) == pytest.approx(best)


def test_knapsack_of_huge_costs_stays_within_the_limit() -> None:
    random = Random(0)
    costs = [sorted(random.randrange(10**9) for _ in range(9)) for _ in range(60)]
    values = [[float(9 - i) for i in range(9)] for _ in costs]
    limit = sum(site[4] for site in costs)
    levels = knapsack(costs, values, limit)
    spent = sum(site[level] for site, level in zip(costs, levels, strict=True))
    assert 0.98 * limit < spent <= limit


def test_knapsack_says_when_nothing_fits() -> None:
    with pytest.raises(BudgetError, match="the cheapest plan costs 7"):
        knapsack([[3, 5], [4]], [[1.0, 0.0], [0.0]], 6)


def test_beliefs_find_the_slopes() -> None:
    random = np.random.default_rng(0)
    losses = [[4.0, 2.0, 1.0, 0.0] for _ in range(6)]
    slopes_S = np.array([0.5, 1.0, 1.5, 2.0, 0.1, 3.0])
    parent = (1,) * 6
    fitness = float(slopes_S.sum()) * 2

    def observe(levels: tuple[int, ...]) -> Observation:
        change_S = np.array([losses[0][i] - losses[0][1] for i in levels])
        return Observation(levels, parent, float(slopes_S @ change_S), 1024)

    before = posterior(losses, parent, fitness, [], PriorSettings())
    assert before.mean_S == pytest.approx(np.ones(6))
    known_S = np.arange(6.0)
    told = posterior(losses, parent, fitness, [], PriorSettings(), known_S)
    assert told.mean_S == pytest.approx(known_S)
    assert np.diag(told.root_SS).max() < np.diag(before.root_SS).min()
    seen = [observe(tuple(int(x) for x in random.integers(0, 4, 6))) for _ in range(400)]
    after = posterior(losses, parent, fitness, seen, PriorSettings(noise=0.001, curvature=0.05))
    assert after.mean_S * fitness / 12 == pytest.approx(slopes_S, abs=0.05)
    assert after.draw(random, 0.0) == pytest.approx(after.mean_S)
    assert np.diag(after.root_SS @ after.root_SS.T).max() < 0.01
