"""The drafter that costs nothing: what followed the latest tokens the last times (`lookup.py`).

It has no state of its own beyond the rows' tokens, which it reads as they come.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.smash.drafters.guesses import ROOT, Budget, Guess, Guesses, Kept
from lightstride.smash.model.lookup import Lookup, continuation, lookup_accuracy

LEAST_PROPOSED = 10
"""Tokens that the shortest run proposes; one of n proposes 2 n."""


class LookupHistory:
    """The lookup of every row, as far as its tokens go; forgotten with the row."""

    def __init__(self) -> None:
        self.lookups: WeakKeyDictionary[Row, Lookup] = WeakKeyDictionary()

    def of_row(self, row: Row) -> Lookup:
        """All that a row's prompt and answer hold so far."""
        if row not in self.lookups:
            self.lookups[row] = Lookup(row.prompt)
        lookup = self.lookups[row]
        lookup.extend(row.tokens[len(lookup.tokens) - len(row.prompt) :])
        return lookup


class LookupDrafter:
    """Continuations that were there before, likeliest first."""

    taps: Sequence[int] = ()
    reads_context = False

    def __init__(self, history: LookupHistory) -> None:
        self.history = history

    def cost(self, found: Sequence[Guesses]) -> float:
        """Nothing."""
        return 0.0

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor | None, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """Up to `row.settings.lookup` - 1 tokens of each continuation, the more the longer the run
        that led to it: its evidence."""
        return [
            Guesses(self.look_up(row, budget)) for row, budget in zip(rows, budgets, strict=True)
        ]

    def look_up(self, row: Row, budget: Budget) -> list[Guess]:
        """Guesses of one row: each continuation counts given that no earlier one begins rightly."""
        longest = min(budget.depth, budget.num_guesses, row.settings.lookup - 1)
        if longest < 1 or budget.least_probability == 1:
            return []
        lookup = self.history.of_row(row)
        branches = []
        for branch in lookup.branches():
            run = lookup.run_before(branch.place, branch.run)
            branches.append((run, continuation(lookup.tokens, branch.place, longest)))
        return branch_guesses(branches, budget, row.ends)

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Nothing: the rows' tokens are read when they are needed."""


def branch_guesses(
    branches: Sequence[tuple[int, Sequence[int]]], budget: Budget, ends: frozenset[int]
) -> list[Guess]:
    """Guesses along some continuations, each with the run of so many tokens that led to it: the
    more of them the longer the run. Each counts given that no earlier one begins rightly."""
    guesses: list[Guess] = []
    remaining = 1.0
    for run, tokens in branches:
        most = max(LEAST_PROPOSED, 2 * run)
        probability, parent = remaining, ROOT
        for depth, token in enumerate(until_end(tokens[:most], ends), 1):
            probability *= lookup_accuracy(run + depth - 1)
            if probability < budget.least_probability:
                break
            guesses.append(Guess(probability, token, parent, depth))
            parent = len(guesses) - 1
        remaining *= 1 - lookup_accuracy(run)
    return guesses


def until_end(tokens: Sequence[int], ends: frozenset[int]) -> Sequence[int]:
    """These tokens, up to an end token."""
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: end + 1]
