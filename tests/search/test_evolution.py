"""The published search, against brute force."""

import pytest

from helpers.spaces import Weighted, brute_force, moves_at, toy
from lightstride.errors import ConfigError
from lightstride.search.evaluation_log import EvaluationLog
from lightstride.search.evolution import EvolutionSettings, evolve


def test_evolution_finds_the_brute_force_optimum() -> None:
    space = toy(2)
    moves, centre = moves_at(space, 0.5)
    fitness = Weighted(space, seed=5)
    setting = EvolutionSettings(generations=40, offspring=32, tokens=(1, 2, 4), survivors=(8, 3, 1))
    found = evolve(moves, centre, setting, EvaluationLog(fitness), seed=0, num_windows=4)
    assert found.fitness == pytest.approx(brute_force(moves, fitness))
    assert moves.cost(moves.levels(found.plan)) <= moves.limit


def test_same_seed_same_plan() -> None:
    space = toy(4)
    moves, centre = moves_at(space, 0.5)
    setting = EvolutionSettings(generations=4, offspring=16, tokens=(1, 2), survivors=(4, 1))

    def run(seed: int) -> str:
        log = EvaluationLog(Weighted(space))
        return evolve(moves, centre, setting, log, seed, num_windows=4).plan.key

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="stages"):
        EvolutionSettings(tokens=(1, 2), survivors=(1,))
    with pytest.raises(ConfigError, match="at least 1"):
        EvolutionSettings(generations=0)
