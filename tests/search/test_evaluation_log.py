"""The log of evaluations: nothing is asked twice, damage is named."""

import json
from pathlib import Path

import pytest

from helpers.spaces import Weighted, moves_at, toy
from lightstride.errors import WorkError
from lightstride.search.evaluation_log import EvaluationLog, Sample, read_evaluations
from lightstride.search.evolution import EvolutionSettings, evolve


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
    assert {
        "scope",
        "generation",
        "stage",
        "tokens",
        "first",
        "fitness",
        "seconds",
        "plan",
        "sha256",
    } == set(json.loads(lines[0]))

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
