"""Trees of guesses, level by level, for drafters that know how likely each next token is.

    level = the T likeliest tokens after the first
    while the level holds anything and is expected to be right often enough:
        drop guesses that end the answer, or that too many better guesses keep out of the tree
        level = the T likeliest tokens after each of them, joint probability = parent's * its own

T is what the tree has room for (as EAGLE-2, arXiv 2406.16858, chooses its guesses).

Shapes: N guesses to go on from, K guesses at the token after each.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from lightstride.generate.rows import Row
from lightstride.smash.drafters.guesses import ROOT, Budget, Guess, Guesses


class Frontier(Protocol):
    """The guesses that trees go on from, in the drafter's own state: at first the certain token of
    each row that grows."""

    def likeliest(self, width: int) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens of what may follow each guess, best first, (N, K) both."""
        ...

    def advance(self, sources: Sequence[int], tokens: Sequence[int]) -> None:
        """Go on from these tokens, each behind the guess whose number is its source."""
        ...


def propose_levels(
    rows: Sequence[Row],
    budgets: Sequence[Budget],
    frontier_of: Callable[[Sequence[int]], Frontier],
    *,
    last: int,
    least_hits: float,
) -> list[Guesses]:
    """Guesses of each row, at most `last` deep; `frontier_of` is given the rows that grow.

    Another level is grown while a row's guesses on it sum to at least `least_hits`.
    """
    growing = [
        index
        for index, (row, budget) in enumerate(zip(rows, budgets, strict=True))
        if budget.num_guesses > 0
        and budget.depth > 0
        and budget.least_probability < 1
        and row.pending[-1] not in row.ends
    ]
    found: list[list[Guess]] = [[] for _ in rows]
    if not growing:
        return [Guesses() for _ in rows]
    tips = [(row, ROOT) for row in growing]
    frontier = frontier_of(growing)
    width = max(budgets[row].num_guesses for row in growing)
    for depth in range(1, last + 1):
        sources, level = add_level(frontier.likeliest(width), tips, budgets, found, depth)
        kept = [
            (source, (row, guess))
            for source, (row, guess) in zip(sources, level, strict=True)
            if worth_expanding(found[row], guess, budgets[row], rows[row].ends)
        ]
        tips = [tip for _, tip in kept]
        expected_hits = sum(found[row][guess].probability for row, guess in tips)
        if depth == last or expected_hits < least_hits * len(growing):
            break
        frontier.advance(
            [source for source, _ in kept], [found[row][guess].token for row, guess in tips]
        )
    return [Guesses(guesses) for guesses in found]


def levels_of(found: Sequence[Guesses]) -> int:
    """Levels that were grown for these guesses, of all rows together."""
    return max((guess.depth for each in found for guess in each.guesses), default=0)


def add_level(
    likeliest: tuple[list[list[float]], list[list[int]]],
    tips: Sequence[tuple[int, int]],
    budgets: Sequence[Budget],
    found: list[list[Guess]],
    depth: int,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Add what may follow each guess of the frontier; which of them, and where it was added."""
    probabilities, tokens = likeliest
    sources: list[int] = []
    level: list[tuple[int, int]] = []
    for source, (row, parent) in enumerate(tips):
        before = 1.0 if parent == ROOT else found[row][parent].probability
        most = budgets[row].num_guesses
        pairs = zip(probabilities[source][:most], tokens[source][:most], strict=True)
        for probability, token in pairs:
            if before * probability < budgets[row].least_probability:
                break
            level.append((row, len(found[row])))
            sources.append(source)
            found[row].append(Guess(before * probability, token, parent, depth))
    return sources, level


def worth_expanding(
    guesses: Sequence[Guess], index: int, budget: Budget, ends: frozenset[int]
) -> bool:
    """Whether a guess may have others behind it that get into the tree."""
    guess = guesses[index]
    better = sum(other.probability > guess.probability for other in guesses)
    better += sum(rival > guess.probability for rival in budget.rivals)
    return guess.depth < budget.depth and guess.token not in ends and better < budget.num_guesses
