"""The search on a space that has nothing to do with models: what to pack for a journey.

Sites are things to take, choices are sizes, costs are grams, and bags are groups.  All three
searches are compared with brute force, with one limit and with a limit for one bag.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightstride.errors import BudgetError
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.guided import GuidedSearch, GuidedSettings
from lightstride.search.moves import Moves
from lightstride.search.race import race
from lightstride.search.space import LevelIndices, SiteSpace

THINGS: dict[str, tuple[tuple[str, int, float], ...]] = {
    "tent": (("none", 0, 9.0), ("tarp", 400, 4.0), ("dome", 1800, 0.0)),
    "stove": (("none", 0, 3.0), ("wood", 210, 1.5), ("gas", 390, 0.5), ("petrol", 700, 0.0)),
    "bag": (("summer", 600, 6.0), ("down", 900, 1.0), ("winter", 1500, 0.0)),
    "book": (("none", 0, 1.0), ("thin", 120, 0.4), ("thick", 480, 0.0)),
    "camera": (("none", 0, 2.5), ("small", 250, 0.8), ("large", 1100, 0.0)),
}
"""For every thing its sizes: name, grams, and the regret at having no better one."""
IN_THE_TOP_BAG = ("book", "camera")


@dataclass(frozen=True)
class Packing:
    """A size for every thing."""

    sizes: Mapping[str, str]

    @property
    def key(self) -> str:
        return " ".join(f"{thing}={size}" for thing, size in self.sizes.items())


@dataclass(frozen=True)
class Luggage(SiteSpace[str, str, Packing]):
    """All packings."""

    def group(self, site: str) -> str:
        return "top" if site in IN_THE_TOP_BAG else "main"

    def make_plan(self, choices: Mapping[str, str]) -> Packing:
        return Packing(choices)

    def choices_of(self, plan: Packing) -> Mapping[str, str]:
        return plan.sizes


SPACE = Luggage(
    {thing: tuple(name for name, _, _ in sizes) for thing, sizes in THINGS.items()},
    {thing: tuple(grams for _, grams, _ in sizes) for thing, sizes in THINGS.items()},
)
REGRETS = [[regret for _, _, regret in sizes] for sizes in THINGS.values()]
DAYS = (1.0, 2.0, 1.0, 0.5, 3.0)
"""How much each thing's regret counts: the search is not told."""


def fitness(plans: Sequence[Packing], sample: Sample) -> list[float]:
    """Regret over the days, and the same whatever the sample."""
    rows = [SPACE.levels(plan) for plan in plans]
    return [
        sum(day * regret[i] for day, regret, i in zip(DAYS, REGRETS, row, strict=True))
        for row in rows
    ]


def best(limit: int, top: int | None) -> float:
    """The least regret of all packings within the limits, by trying every one."""
    every = itertools.product(*(range(len(costs)) for costs in SPACE.level_costs))
    moves = Moves(SPACE, limit)
    allowed = [
        levels
        for levels in every
        if moves.cost(levels) <= limit and (top is None or moves.cost(levels, "top") <= top)
    ]
    return min(fitness([SPACE.plan(levels) for levels in allowed], Sample(1)))


LIMITS = [(1500, None), (2600, None), (3400, None), (1900, 300), (3400, 130), (3000, 1300)]


@pytest.mark.parametrize(("limit", "top"), LIMITS)
def test_both_searches_find_the_brute_force_optimum(limit: int, top: int | None) -> None:
    limits = {} if top is None else {"top": top}
    moves = Moves(SPACE, limit, limits)
    centre = SPACE.plan((0,) * len(SPACE.sites))
    settings = GuidedSettings(tokens=(8, 8), survivors=(4, 1), probe_tokens=8)
    guided = GuidedSearch(moves, REGRETS, settings, EvaluationLog(fitness), window=8)
    published = EvolutionSettings(generations=30, offspring=24, tokens=(1, 2), survivors=(6, 1))
    found = [
        guided.run(centre, seed=0),
        evolve(moves, centre, published, EvaluationLog(fitness), seed=0, num_windows=1),
    ]
    for result in found:
        assert result.fitness == pytest.approx(best(limit, top))
        assert result.plan in SPACE
        assert SPACE.total(result.plan) <= limit
        if top is not None:
            assert moves.cost(SPACE.levels(result.plan), "top") <= top
    assert len(found[0].slopes) == len(SPACE.sites)


def test_all_groups_may_have_limits() -> None:
    moves = Moves(SPACE, 3000, {"top": 400, "main": 2000})
    levels = moves.repair(tuple(len(costs) - 1 for costs in moves.costs), lambda sites: sites[0])
    assert moves.cost(levels, "top") <= 400
    assert moves.cost(levels, "main") <= 2000
    guided = GuidedSearch(moves, REGRETS, GuidedSettings(), EvaluationLog(fitness), window=8)
    plan = guided.run(SPACE.plan(levels), seed=1).plan
    assert moves.cost(SPACE.levels(plan), "top") <= 400
    assert moves.cost(SPACE.levels(plan), "main") <= 2000


def test_slopes_of_one_search_stand_in_for_the_probes_of_another(tmp_path: Path) -> None:
    centre = SPACE.plan((1,) * len(SPACE.sites))
    path = tmp_path / "search.jsonl"

    def run(limit: int, slopes: Sequence[float]) -> tuple[tuple[float, ...], int]:
        log = EvaluationLog(fitness, path, f"{limit} g")
        search = GuidedSearch(
            Moves(SPACE, limit), REGRETS, GuidedSettings(), log, 8, prior_slopes=slopes
        )
        result = search.run(centre, seed=0)
        assert result.fitness == pytest.approx(best(limit, None))
        return result.slopes, log.tokens

    slopes, tokens = run(2600, ())
    assert run(2600, ()) == (slopes, tokens)
    _, fewer = run(2500, slopes)
    assert fewer < tokens


def test_few_plans_race() -> None:
    plans = [SPACE.plan((i, i, i, i, i)) for i in range(3)]
    extra: LevelIndices = (2, 3, 2, 2, 2)
    plans.append(SPACE.plan(extra))
    result = race(plans, EvaluationLog(fitness), tokens=64)
    assert result.plan == plans[3]
    assert result.tokens == 4 * 8 + 3 * 64


def test_limits_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(BudgetError, match="together"):
        Moves(SPACE, 1000, {"top": 600, "main": 600})
    moves = Moves(SPACE, 500)
    with pytest.raises(BudgetError, match="at most 500"):
        moves.repair((0,) * len(SPACE.sites), lambda sites: sites[0])
