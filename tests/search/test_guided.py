"""The default search: exact knapsack, honest beliefs, the optimum of small spaces."""

import itertools
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.spaces import Weighted, brute_force, ffn_step, moves_at, toy
from lightstride.errors import BudgetError, ConfigError
from lightstride.prune.space.even import even_plans
from lightstride.prune.space.plan import Plan, Space
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.guided import GuidedSearch, GuidedSettings, Losses, stage_samples
from lightstride.search.moves import Moves
from lightstride.search.race import race
from lightstride.search.result import GenerationReport
from lightstride.search.surrogate import Observation, PriorSettings, knapsack, posterior

WINDOW = 512


def losses_of(space: Space) -> Losses:
    return [[(1 - cost / max(site)) ** 2 for cost in site] for site in space.level_costs]


def search(moves: Moves, fitness: Weighted, log: EvaluationLog, **options: object) -> GuidedSearch:
    chosen = GuidedSettings(**options)  # type: ignore[arg-type]
    return GuidedSearch(moves, losses_of(moves.space), chosen, log, WINDOW)


class Bent(Weighted):
    """What sites lose is felt together: more than the sum, and noisy on few tokens."""

    def __call__(self, plans: Sequence[Plan], sample: Sample) -> list[float]:
        self.calls += len(plans)
        values = []
        for plan in plans:
            total = 0.0
            noise = Random(f"Sample(tokens={sample.tokens}, first={sample.first_window})")
            for site, shape in plan.shapes.items():
                gone = 1 - self.space.cost(site, shape) / max(self.space.costs[site])
                error = noise.gauss(1, 0.2 * (1024 / sample.tokens) ** 0.5)
                total += self.weights[site] * gone**2 * max(error, 0.0)
            values.append(total**1.3)
        return values


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


def test_stages_read_one_part_of_the_text_after_the_other() -> None:
    samples = stage_samples((1024, 3072, 12_288), WINDOW)
    assert [sample.first_window for sample in samples] == [0, 2, 8]


def test_finds_the_brute_force_optimum_of_four_sites() -> None:
    for seed in range(5):
        moves, centre = moves_at(toy(2), 0.5)
        fitness = Weighted(moves.space, seed)
        found = search(moves, fitness, EvaluationLog(fitness)).run(centre, seed)
        assert found.fitness == pytest.approx(brute_force(moves, fitness))
        assert moves.space.total(found.plan) <= moves.limit


@pytest.mark.parametrize("fixed", [False, True])
def test_stays_within_the_budget(fixed: bool) -> None:
    moves, centre = moves_at(toy(6), 0.4, fixed=fixed)
    fitness = Bent(moves.space, 1)
    log = EvaluationLog(fitness)
    guided = search(moves, fitness, log, generations=3)
    found = guided.run(centre, 0)
    parent = moves.levels(found.plan)
    for levels in [parent, *guided.propose(parent, found.fitness, np.random.default_rng(1))]:
        assert 0 <= moves.limit - moves.cost(levels) < ffn_step(moves.space)
        if fixed:
            assert moves.cost(levels, "attention") <= moves.group_limits["attention"]


def test_needs_a_tenth_of_the_tokens_of_the_published_search() -> None:
    moves, centre = moves_at(toy(12), 0.5)
    fitness = Bent(moves.space, 3)
    slow = EvaluationLog(fitness)
    published = EvolutionSettings(
        generations=15, offspring=32, tokens=(1024, 4096, 16_384), survivors=(8, 3, 2)
    )
    theirs = evolve(moves, centre, published, slow, 0, num_windows=128)
    quick = EvaluationLog(fitness)
    ours = search(moves, fitness, quick, generations=2, tokens=(1024, 3072), survivors=(3, 1))
    found = ours.run(centre, 0)
    assert quick.tokens <= slow.tokens / 10
    gain = fitness.loss(centre) - fitness.loss(found.plan)
    assert gain >= 0.9 * (fitness.loss(centre) - fitness.loss(theirs.plan))


def test_what_is_known_stands_in_for_probes() -> None:
    moves, centre = moves_at(toy(8), 0.5)
    fitness = Bent(moves.space, 2)
    first = EvaluationLog(fitness)
    found = search(moves, fitness, first, generations=1).run(centre, 0)
    known = search(moves, fitness, EvaluationLog(fitness), generations=1)
    known.prior_S = np.array(found.slopes)
    again = known.run(centre, 0)
    assert again.tokens < found.tokens - 8 * 1024
    gain = fitness.loss(centre) - fitness.loss(found.plan)
    assert fitness.loss(centre) - fitness.loss(again.plan) >= 0.9 * gain
    weights = fitness.weights
    slopes = np.array([found.slopes, [weights[site] for site in moves.space.sites]])
    assert np.corrcoef(slopes)[0, 1] > 0.7


def test_same_seed_same_plan_and_another_seed_other_offspring() -> None:
    moves, centre = moves_at(toy(8), 0.5)
    fitness = Bent(moves.space, 2)

    def run(seed: int) -> tuple[str, list[str]]:
        log = EvaluationLog(fitness)
        found = search(moves, fitness, log).run(centre, seed)
        return found.plan.key, sorted(key for key, _ in log.known)

    assert run(0) == run(0)
    assert run(0)[1] != run(1)[1]


def test_reports_generations() -> None:
    moves, centre = moves_at(toy(3), 0.5)
    fitness = Weighted(moves.space)
    told: list[GenerationReport] = []
    found = search(moves, fitness, EvaluationLog(fitness), generations=4).run(
        centre, 0, told.append
    )
    assert [report.generation for report in told] == list(range(1, len(told) + 1))
    assert told[-1] == GenerationReport(len(told), 4, found.plan, found.fitness, found.tokens)


def test_a_space_of_one_plan_is_searched_at_once() -> None:
    moves, centre = moves_at(toy(3), 0.5)
    space = moves.space
    only = Space(
        {site: (shape,) for site, shape in centre.shapes.items()},
        {site: (space.cost(site, shape),) for site, shape in centre.shapes.items()},
        space.geometry,
    )
    fitness = Weighted(only)
    found = search(Moves(only, moves.limit), fitness, EvaluationLog(fitness)).run(centre, 0)
    assert found.plan == centre


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


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="stages"):
        GuidedSettings(tokens=(1,), survivors=(1, 2))
    with pytest.raises(ConfigError, match="at least 1"):
        GuidedSettings(offspring=0)
