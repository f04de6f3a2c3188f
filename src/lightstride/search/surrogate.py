"""A model of the fitness that is linear in the sites' own losses, and its exact optimum.

Every site has at every level a loss l that is known before the search: how much the site alone
loses there against its best choice.  Near a parent plan p the fitness is modelled as

    f(x) - f(p)  =  sum_s w_s (l_s(x_s) - l_s(p_s)) + noise,    w_s ~ N(a, (spread a)^2),

with one common slope a.  Every candidate evaluated so far is an observation, weighted less the
farther it is from the parent; the posterior of w is exact.  For given w the best plan within
the budget is a knapsack with one item a site, solved by dynamic programming over costs.

Shapes: S sites, M observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np
from numpy.typing import NDArray

from lightstride.errors import BudgetError
from lightstride.search.space import LevelIndices

Array = NDArray[np.float64]

MOST_CELLS = 1 << 15
"""Finest grid of costs; finer costs are rounded up to it, so that the limit still holds."""


def knapsack(
    costs: Sequence[Sequence[int]], values: Sequence[Sequence[float]], limit: int
) -> LevelIndices:
    """One level for every site with the least sum of values whose costs are within the limit.

    Exact if the costs are multiples of a number that divides the room into at most
    `MOST_CELLS`; otherwise as good as the grid.
    """
    lowest = [min(site) for site in costs]
    room = limit - sum(lowest)
    if room < 0:
        raise BudgetError(f"the cheapest plan costs {sum(lowest)}, more than {limit}")
    extra = [[cost - low for cost in site] for site, low in zip(costs, lowest, strict=True)]
    unit = reduce(gcd, (cost for site in extra for cost in site), 0) or 1
    unit = max(unit, -(-room // MOST_CELLS))
    cells = room // unit + 1
    best = np.zeros(cells)
    choices = np.empty((len(costs), cells), dtype=np.int16)
    for site, (site_costs, site_values) in enumerate(zip(extra, values, strict=True)):
        best, choices[site] = _add_site(best, [-(-c // unit) for c in site_costs], site_values)
    levels, cell = [], cells - 1
    for site in reversed(range(len(costs))):
        level = int(choices[site, cell])
        levels.append(level)
        cell -= -(-extra[site][level] // unit)
    return tuple(reversed(levels))


def _add_site(
    best: Array, weights: Sequence[int], values: Sequence[float]
) -> tuple[Array, NDArray[np.int16]]:
    """Best sums with one more site for every room, and the level that gives each."""
    sums = np.full(len(best), np.inf)
    choice = np.zeros(len(best), dtype=np.int16)
    for level, (weight, value) in enumerate(zip(weights, values, strict=True)):
        if weight >= len(best):
            continue
        candidate = best[: len(best) - weight] + value
        better = candidate < sums[weight:]
        sums[weight:][better] = candidate[better]
        choice[weight:][better] = level
    return sums, choice


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Beliefs about slopes before any observation, and about the errors of observations."""

    spread: float = 1.0
    """Standard deviation of the sites' slopes over their mean, when nothing is known."""
    known_spread: float = 0.3
    """The same around slopes that an earlier search found."""
    curvature: float = 0.3
    """Standard deviation of an observation's error over the path from the parent to it."""
    noise: float = 0.02
    """Standard deviation of a paired difference on 1,024 tokens over the parent's fitness."""


@dataclass(frozen=True)
class Observation:
    """One candidate's fitness less its parent's, on the same tokens."""

    levels: LevelIndices
    parent: LevelIndices
    difference: float
    tokens: int


@dataclass(frozen=True)
class Posterior:
    """Slopes of all sites over the common slope: their mean, and a root of their covariance."""

    mean_S: Array
    root_SS: Array

    def draw(self, random: np.random.Generator, temperature: float) -> Array:
        """Slopes that might be true; at temperature 0 the expected ones."""
        noise_S = self.root_SS @ random.standard_normal(len(self.mean_S))
        return np.asarray(self.mean_S + temperature * noise_S)


def posterior(
    losses: Sequence[Sequence[float]],
    parent: LevelIndices,
    fitness: float,
    observations: Sequence[Observation],
    settings: PriorSettings,
    prior_S: Array | None = None,
) -> Posterior:
    """Slopes over the common one, given all observations, as seen from a parent of this fitness.

    `prior_S` are believed beforehand; without them all are 1, which means that every site has
    the share of the fitness that it has of the losses.
    """
    slope = fitness / max(float(losses_at(losses, parent).sum()), 1e-30)
    here_S = slope * losses_at(losses, parent)
    spread = settings.spread if prior_S is None else settings.known_spread
    precision_SS = np.eye(len(losses)) / spread**2
    target_S = precision_SS @ (np.ones(len(losses)) if prior_S is None else prior_S)
    for seen in observations:
        start_S = slope * losses_at(losses, seen.parent)
        change_S = slope * losses_at(losses, seen.levels) - start_S
        path = float(np.abs(change_S).sum() + np.abs(start_S - here_S).sum())
        error = settings.noise * fitness * (1024 / seen.tokens) ** 0.5
        variance = error**2 + (settings.curvature * path) ** 2
        precision_SS += np.outer(change_S, change_S) / variance
        target_S = target_S + change_S * (seen.difference / variance)
    covariance_SS = np.linalg.inv(precision_SS)
    return Posterior(covariance_SS @ target_S, np.linalg.cholesky(covariance_SS))


def losses_at(losses: Sequence[Sequence[float]], levels: LevelIndices) -> Array:
    """Loss of every site at its level, (S,)."""
    return np.array([site[level] for site, level in zip(losses, levels, strict=True)])
