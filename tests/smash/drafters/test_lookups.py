"""Looked-up guesses, and the rows they belong to."""

import pytest

from helpers.smash_toys import a_row
from lightstride.smash.drafters.guesses import ROOT, Budget
from lightstride.smash.drafters.lookups import LookupDrafter, LookupHistory
from lightstride.smash.model.lookup import LOOKUP_ACCURACY

ASKED = Budget(num_guesses=10, depth=4, least_probability=0.0)


def test_a_longer_run_is_the_likelier_to_go_on() -> None:
    row = a_row([5, 1, 2, 9, 9, 2, 4, 1, 2], ends={9})
    drafter = LookupDrafter(LookupHistory())
    (found,) = drafter.propose([row], None, [ASKED])
    assert found.tokens == [9, 4, 1, 2, 4]
    assert [guess.parent for guess in found.guesses] == [ROOT, ROOT, 1, 2, 3]
    sure = LOOKUP_ACCURACY[2]
    wanted, joint = [sure], 1 - sure
    for run in (1, 2, 3, 4):
        joint *= LOOKUP_ACCURACY[run]
        wanted.append(joint)
    assert [guess.probability for guess in found.guesses] == pytest.approx(wanted)


def test_a_rows_own_tokens_are_looked_up_as_they_come() -> None:
    history = LookupHistory()
    row, other = a_row([1, 2, 3]), a_row([7, 8])
    drafter = LookupDrafter(history)
    assert drafter.propose([row], None, [ASKED])[0].tokens == []
    row.tokens += [1, 2]
    assert drafter.propose([row], None, [ASKED])[0].tokens == [3, 1, 2, 3]
    assert drafter.propose([other], None, [ASKED])[0].tokens == []
    del row
    assert len(history.lookups) == 1
