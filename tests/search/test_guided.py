"""The guided search: as good as brute force, with few tokens."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from helpers.spaces import Weighted, brute_force, ffn_step, moves_at, toy
from lightstride.errors import ConfigError
from lightstride.prune.space.plan import Plan, Space
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.guided import GuidedSearch, GuidedSettings, Losses, stage_samples
from lightstride.search.moves import Moves
from lightstride.search.result import GenerationReport

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


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="stages"):
        GuidedSettings(tokens=(1,), survivors=(1, 2))
    with pytest.raises(ConfigError, match="at least 1"):
        GuidedSettings(offspring=0)
