"""The micro decoder as a drafter of trees: the likeliest continuations, level by level.

    level = the T likeliest tokens after the first, by the micro decoder
    while the level holds anything and is expected to be right at least MIN_LEVEL_PROBABILITY often:
        drop guesses that end the answer, or that too many better guesses keep out of the tree
        level = the T likeliest tokens after each of them, joint probability = parent's * its own

T is what the tree has room for (as EAGLE-2, arXiv 2406.16858, chooses its guesses).

Shapes: B rows, T taps, N guesses to go on from, K guesses at the token after each, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.smash.drafters.guesses import ROOT, Budget, Guess, Guesses, Kept
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.modules import MicroCache

STEP_COST = 0.03
"""A micro step in forwards of SmolLM2-135M over one column."""
MIN_LEVEL_PROBABILITY = 0.1
"""Grow another level while a row's guesses on it sum to at least this probability.

A level costs one micro step, 3% of a forward, and is worth a token as often as one of its guesses
is right: with half of the level above right, 0.1 * 0.5 = 0.05 tokens for 0.03 forwards."""


class MicroTree:
    """Grows guesses for every row by the micro decoder."""

    reads_context = False

    def __init__(self, model: SmashBody) -> None:
        self.model = model
        self.taps: Sequence[int] = model.taps

    def cost(self, num_rows: int, num_guesses: int) -> float:
        """A micro step for each level."""
        return STEP_COST * min(num_guesses, self.model.config.max_segment - 1)

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """Guesses of each row, at most as deep as the micro decoder goes."""
        growing = [
            index
            for index, (row, budget) in enumerate(zip(rows, budgets, strict=True))
            if budget.num_guesses > 0
            and budget.depth > 0
            and budget.least_probability < 1
            and row.pending[-1] not in row.ends
        ]
        found: list[list[Guess]] = [[] for _ in rows]
        if growing:
            self.grow(rows, taps_BTD, budgets, growing, found)
        return [Guesses(guesses) for guesses in found]

    def grow(
        self,
        rows: Sequence[Row],
        taps_BTD: Tensor,
        budgets: Sequence[Budget],
        growing: Sequence[int],
        found: list[list[Guess]],
    ) -> None:
        """Add the guesses of the rows that grow to those found, level by level."""
        frontier = [(row, ROOT) for row in growing]
        vectors_ND, cache = self.model.first_micro_step(
            taps_BTD[list(growing)], self.ids([rows[row].pending[-1] for row in growing])
        )
        width = max(budgets[row].num_guesses for row in growing)
        last = self.model.config.max_segment - 1
        for depth in range(1, last + 1):
            sources, level = self.add_level(vectors_ND, frontier, budgets, found, depth, width)
            kept = [
                (source, (row, guess))
                for source, (row, guess) in zip(sources, level, strict=True)
                if worth_expanding(found[row], guess, budgets[row], rows[row].ends)
            ]
            frontier = [tip for _, tip in kept]
            expected_hits = sum(found[row][guess].probability for row, guess in frontier)
            if depth == last or expected_hits < MIN_LEVEL_PROBABILITY * len(growing):
                return
            last_N = self.ids([found[row][guess].token for row, guess in frontier])
            cache = of_sources(cache, self.ids([source for source, _ in kept]))
            vectors_ND, cache = self.model.next_micro_step(last_N, cache)

    def add_level(
        self,
        vectors_ND: Tensor,
        frontier: Sequence[tuple[int, int]],
        budgets: Sequence[Budget],
        found: list[list[Guess]],
        depth: int,
        width: int,
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Add what may follow each guess of the frontier; which of them, and where it was added."""
        probabilities, tokens = self.top_tokens(vectors_ND, width)
        sources: list[int] = []
        level: list[tuple[int, int]] = []
        for source, (row, parent) in enumerate(frontier):
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

    def top_tokens(
        self, vectors_ND: Tensor, width: int
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens that the micro decoder finds likeliest, best first."""
        probabilities_NM = self.model.micro_logits(vectors_ND).float().softmax(-1)
        top_NK, ids_NK = probabilities_NM.topk(min(width, probabilities_NM.shape[-1]))
        return top_NK.tolist(), self.model.vocabulary_ids(ids_NK).tolist()

    def ids(self, values: Sequence[int]) -> Tensor:
        """Whole numbers on the model's device."""
        return torch.tensor(values, device=self.model.device)

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Nothing: the micro decoder remembers no step."""


def worth_expanding(
    guesses: Sequence[Guess], index: int, budget: Budget, ends: frozenset[int]
) -> bool:
    """Whether a guess may have others behind it that get into the tree."""
    guess = guesses[index]
    better = sum(other.probability > guess.probability for other in guesses)
    better += sum(rival > guess.probability for rival in budget.rivals)
    return guess.depth < budget.depth and guess.token not in ends and better < budget.num_guesses


def of_sources(cache: MicroCache, sources_N: Tensor) -> MicroCache:
    """The micro decoder's cache for guesses, given the one that each follows."""
    return [(key[sources_N], value[sources_N]) for key, value in cache]
