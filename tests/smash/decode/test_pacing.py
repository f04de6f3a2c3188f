"""Rests, probes and what drafters are believed, on a clock of steps."""

import pytest
from torch import nn

from lightstride.smash.decode.pacing import MOST_REST, MOST_TRUST, PROBE, REST, Pacing, pacing_of
from lightstride.smash.drafters.guesses import ROOT, Guess, Tree


def drafted_steps(pacing: Pacing, gain: float, steps: int, rows: int = 1) -> list[bool]:
    """Whether each step was drafted for, drafting always promising this gain."""
    found = []
    for _ in range(steps):
        drafts = pacing.start_step(rows)
        if drafts:
            pacing.note_gain(gain)
        found.append(drafts)
    return found


def test_drafting_that_pays_goes_on() -> None:
    assert all(drafted_steps(Pacing(), 1.2, 200))


def test_drafting_that_does_not_pay_rests_ever_longer_between_probes() -> None:
    steps = drafted_steps(Pacing(), 0.9, 400)
    runs = "".join("d" if each else "." for each in steps).split("d" * PROBE)
    rests = [len(run.strip("d")) for run in runs if "." in run]
    assert rests[:4] == [REST, 2 * REST, MOST_REST, MOST_REST]
    assert sum(steps) < 20


def test_a_gain_between_the_borders_changes_nothing() -> None:
    """Drafting that goes on stays on, and what rests stays at rest: no going to and fro."""
    assert all(drafted_steps(Pacing(), 1.045, 200))
    pacing = Pacing()
    drafted_steps(pacing, 0.5, 30)
    assert sum(drafted_steps(pacing, 1.045, 300)) < 20


def test_a_probe_that_pays_ends_the_rest() -> None:
    pacing = Pacing()
    drafted_steps(pacing, 0.5, 5)
    steps = drafted_steps(pacing, 1.3, REST + 60)
    assert all(steps[REST + PROBE :])


def test_other_numbers_of_rows_end_a_rest() -> None:
    pacing = Pacing()
    drafted_steps(pacing, 0.5, 5, rows=16)
    assert pacing.rests > 2
    assert drafted_steps(pacing, 1.3, 4, rows=2)[-2:] == [True, True]


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
    assert pacing.trust(1, 2) < 0.25
    assert second.probability < 0.15
    assert (first.claimed, third.claimed, third.drafter) == (0.8, 0.1, 1)
    assert pacing.trust(0, 1) == 1


def test_no_guess_is_likelier_than_the_one_before_it() -> None:
    pacing = Pacing(accepted={(0, 2): 90.0}, expected={(0, 2): 30.0})
    chain = pacing.corrected([Guess(0.5, 1, ROOT, 1), Guess(0.45, 2, 0, 2)], 0)
    assert chain[1].probability == chain[0].probability == 0.5


def test_a_models_sessions_share_what_was_learned() -> None:
    model = nn.Linear(1, 1)
    assert pacing_of(model) is pacing_of(model)
