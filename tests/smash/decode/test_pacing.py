"""Rests, probes and what drafters are believed, on a clock of steps."""

import pytest
from torch import nn

from lightstride.smash.decode.pacing import (
    FIRST_PROBE,
    MOST_REST,
    MOST_TRUST,
    PROBE,
    REST,
    Pace,
    Pacing,
    pacing_of,
)
from lightstride.smash.drafters.guesses import ROOT, Guess, Tree


def drafted_steps(pace: Pace, gain: float, steps: int) -> list[bool]:
    """Whether each step was drafted for, drafting always promising this gain."""
    found = []
    for _ in range(steps):
        drafts = pace.start_step()
        if drafts:
            pace.note_gain(gain)
        found.append(drafts)
    return found


def test_drafting_that_pays_goes_on() -> None:
    assert all(drafted_steps(Pace.of_rows(1), 1.2, 200))


def test_drafting_that_does_not_pay_rests_ever_longer_between_probes() -> None:
    steps = drafted_steps(Pace.of_rows(16), 0.9, 400)
    runs = "".join("d" if each else "." for each in steps).split("d" * PROBE)
    rests = [len(run) for run in runs if run]
    assert rests[:4] == [REST, 2 * REST, MOST_REST, MOST_REST]
    assert sum(steps) < 20


def test_many_rows_that_gain_nothing_lose_little() -> None:
    """Drafting takes a fifth of a step and brings nothing: 64 tokens of 16 rows."""
    seconds = sum(1.2 if drafts else 1.0 for drafts in drafted_steps(Pace.of_rows(16), 0.83, 64))
    assert seconds < 64 / 0.97


def test_one_step_of_one_row_says_little() -> None:
    """The first probe is as long as it takes to have heard of as many drafts."""
    pace = Pace.of_rows(1)
    assert all(drafted_steps(pace, 0.9, 1) + drafted_steps(pace, 1.3, 100))
    for rows, steps in ((1, FIRST_PROBE), (2, FIRST_PROBE // 2), (64, PROBE)):
        found = drafted_steps(Pace.of_rows(rows), 0.9, PROBE + REST)
        assert found == [n < steps for n in range(PROBE + REST)]


def test_a_gain_between_the_borders_changes_nothing() -> None:
    """Drafting that goes on stays on, and what rests stays at rest: no going to and fro."""
    pace = Pace.of_rows(4)
    drafted_steps(pace, 1.2, 2)
    assert all(drafted_steps(pace, 1.045, 200))
    drafted_steps(pace, 0.5, 30)
    assert sum(drafted_steps(pace, 1.045, 300)) < 20


def test_a_probe_that_pays_ends_the_rest() -> None:
    pace = Pace.of_rows(16)
    drafted_steps(pace, 0.5, 3)
    steps = drafted_steps(pace, 1.3, REST + 60)
    assert all(steps[REST + PROBE :])


def test_few_rows_and_many_have_a_pace_of_their_own() -> None:
    pacing = Pacing()
    drafted_steps(pacing.of_rows(16), 0.5, 5)
    assert pacing.of_rows(16).rests > 2
    assert pacing.of_rows(31) is pacing.of_rows(16)
    assert drafted_steps(pacing.of_rows(2), 1.3, 4) == [True] * 4
    assert pacing.of_rows(16).rests > 2


def test_claims_are_corrected_by_what_came_true() -> None:
    pacing = Pacing()
    guesses = [Guess(0.8, 1, ROOT, 1), Guess(0.6, 2, 0, 2), Guess(0.1, 3, ROOT, 1)]
    for _ in range(200):
        tree = Tree([9])
        tree.attach(pacing.corrected(guesses, 1), 9)
        pacing.learn([tree], [[0, 1]])
    first, second, third = pacing.corrected(guesses, 1)
    assert first.probability == pytest.approx(0.8 * pacing.trust(1, 1))
    assert 1 < pacing.trust(1, 1) < MOST_TRUST
    assert pacing.trust(1, 2) < 0.35
    assert second.probability < 0.6 * 0.35
    assert (first.claimed, third.claimed, third.drafter) == (0.8, 0.1, 1)
    assert pacing.trust(0, 1) == 1


def test_rows_of_a_step_are_alike_so_they_count_as_one() -> None:
    one, many = Pacing(), Pacing()
    for pacing, rows in ((one, 1), (many, 16)):
        trees = [Tree([9]) for _ in range(rows)]
        for tree in trees:
            tree.attach(pacing.corrected([Guess(0.8, 1, ROOT, 1)], 1), 9)
        pacing.learn(trees, [[0]] * rows)
    assert many.trust(1, 1) == pytest.approx(one.trust(1, 1))
    assert many.trust(1, 1) < 1


def test_no_guess_is_likelier_than_the_one_before_it() -> None:
    pacing = Pacing(accepted={(0, 2): 90.0}, expected={(0, 2): 30.0})
    chain = pacing.corrected([Guess(0.5, 1, ROOT, 1), Guess(0.45, 2, 0, 2)], 0)
    assert chain[1].probability == chain[0].probability == 0.5


def test_a_models_sessions_share_what_was_learned() -> None:
    model = nn.Linear(1, 1)
    assert pacing_of(model) is pacing_of(model)
