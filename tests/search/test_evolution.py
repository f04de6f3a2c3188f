"""Moves keep the budget; the log replays; the published search finds what there is to find."""

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.spaces import Weighted, brute_force, ffn_step, moves_at, toy
from lightstride.errors import ConfigError, WorkError
from lightstride.search.evaluation_log import EvaluationLog, Sample, read_evaluations
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.moves import mutants


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.05, 0.85), st.booleans())
def test_mutations_stay_within_the_budget_and_one_ffn_step_of_it(
    seed: int, share: float, fixed: bool
) -> None:
    space = toy(6)
    moves, centre = moves_at(space, round(share, 4), fixed=fixed)
    random = Random(seed)
    parent = moves.repair(moves.levels(centre), random.choice)
    attention = moves.cost(parent, "attention")
    for levels in mutants(moves, parent, 20, random):
        cost = moves.cost(levels)
        assert cost <= moves.limit
        assert moves.plan(levels) in space
        assert levels != parent
        if fixed:
            assert moves.cost(levels, "attention") <= attention
        can_grow = any(
            moves.next_dearer(level, i) is not None
            for i, level in enumerate(levels)
            if moves.space.groups[i] == "ffn"
        )
        assert moves.limit - cost < ffn_step(space) or not can_grow
        parent = levels


def test_offspring_are_distinct_and_seeded() -> None:
    moves, centre = moves_at(toy(4), 0.5)
    parent = moves.levels(centre)
    first = mutants(moves, parent, 64, Random(3))
    assert len(first) == len(set(first)) == 64
    assert first == mutants(moves, parent, 64, Random(3))
    assert first != mutants(moves, parent, 64, Random(4))


def test_exchange_goes_between_kinds_unless_the_split_is_fixed() -> None:
    free, centre = moves_at(toy(6), 0.5)
    parent = free.levels(centre)
    costs = {free.cost(levels, "attention") for levels in mutants(free, parent, 50, Random(0))}
    assert len(costs) > 1


def test_small_spaces_end_offspring_early() -> None:
    moves, centre = moves_at(toy(1, multiple=48), 0.4)
    assert len(mutants(moves, moves.levels(centre), 1000, Random(0))) < 20


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


def test_the_ledger_replays_and_evaluates_nothing_twice(tmp_path: Path) -> None:
    space = toy(3)
    moves, centre = moves_at(space, 0.5)
    setting = EvolutionSettings(generations=3, offspring=8, tokens=(1, 2), survivors=(4, 1))
    path = tmp_path / "search.jsonl"
    fitness = Weighted(space)
    first = EvaluationLog(fitness, path, "r1")
    found = evolve(moves, centre, setting, first, seed=0, num_windows=4)
    lines = path.read_text().splitlines()
    assert len(lines) == fitness.calls
    assert {"scope", "generation", "stage", "tokens", "first", "fitness", "seconds", "plan"} == set(
        json.loads(lines[0])
    )

    cut = "\n".join(lines[: len(lines) // 2]) + "\n" + lines[-1][:20]
    path.write_text(cut)
    again = Weighted(space)
    second = EvaluationLog(again, path, "r1")
    assert evolve(moves, centre, setting, second, seed=0, num_windows=4) == found
    assert again.calls == len(lines) - len(lines) // 2
    assert len(read_evaluations(path)) == len(lines)
    assert second.tokens == first.tokens


def test_answers_of_another_scope_are_not_used(tmp_path: Path) -> None:
    space = toy(2)
    moves, centre = moves_at(space, 0.5)
    path = tmp_path / "search.jsonl"
    plan = moves.plan(moves.levels(centre))
    for scope in ("a", "b"):
        fitness = Weighted(space)
        EvaluationLog(fitness, path, scope)([plan, plan], Sample(4), {})
        assert fitness.calls == 1


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    path.write_text('{"scope": \n{}\n')
    with pytest.raises(WorkError, match=r"search\.jsonl is damaged"):
        read_evaluations(path)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="stages"):
        EvolutionSettings(tokens=(1, 2), survivors=(1,))
    with pytest.raises(ConfigError, match="at least 1"):
        EvolutionSettings(generations=0)
