"""Moves that never leave the budget."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.spaces import ffn_step, moves_at, toy
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
