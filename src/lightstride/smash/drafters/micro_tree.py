"""The micro decoder as a drafter of trees (`levels.py`): the likeliest continuations.

Shapes: B rows, T taps, N guesses to go on from, K guesses at the token after each, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.generate.batch.packed import packed_layers
from lightstride.generate.rows import Row
from lightstride.smash.drafters.guesses import Budget, Guesses, Kept
from lightstride.smash.drafters.levels import levels_of, propose_levels
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.modules import MicroCache

STEP_COST = 0.07
"""A micro step in forwards of SmolLM2-135M over one column of as many rows: by processor time on
one thread of a Zen 4, in bfloat16 and with packed weights (LOG.md, "drafts that pay")."""
MIN_LEVEL_PROBABILITY = 0.2
"""Grow another level while a row's guesses on it sum to at least this probability.

A level costs one micro step, 7% of a forward, and is worth a token as often as one of its guesses
is right: with half of the level above right, 0.2 * 0.5 = 0.1 tokens for 0.07 forwards."""


class MicroTree:
    """Grows guesses for every row by the micro decoder."""

    reads_context = False

    def __init__(self, model: SmashBody) -> None:
        self.model = model
        self.taps: Sequence[int] = model.taps

    def cost(self, found: Sequence[Guesses]) -> float:
        """A micro step for each level."""
        return STEP_COST * levels_of(found)

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor | None, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """Guesses of each row, at most as deep as the micro decoder goes."""

        def frontier_of(growing: Sequence[int]) -> MicroFrontier:
            assert taps_BTD is not None
            first = [rows[row].pending[-1] for row in growing]
            return MicroFrontier(self.model, taps_BTD[list(growing)], first)

        with packed_layers(self.model.micro):
            return propose_levels(
                rows,
                budgets,
                frontier_of,
                last=self.model.config.max_segment - 1,
                least_hits=MIN_LEVEL_PROBABILITY,
            )

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Nothing: the micro decoder remembers no step."""


class MicroFrontier:
    """The micro decoder behind each guess that trees go on from."""

    def __init__(self, model: SmashBody, taps_BTD: Tensor, first: Sequence[int]) -> None:
        self.model = model
        self.vectors_ND, self.cache = model.first_micro_step(taps_BTD, self.ids(model, first))

    def likeliest(self, width: int) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens that the micro decoder finds likeliest, best first."""
        probabilities_NM = self.model.micro_logits(self.vectors_ND).float().softmax(-1)
        top_NK, ids_NK = probabilities_NM.topk(min(width, probabilities_NM.shape[-1]))
        return top_NK.tolist(), self.model.vocabulary_ids(ids_NK).tolist()

    def advance(self, sources: Sequence[int], tokens: Sequence[int]) -> None:
        """One more micro step."""
        cache = of_sources(self.cache, self.ids(self.model, sources))
        last_N = self.ids(self.model, tokens)
        self.vectors_ND, self.cache = self.model.next_micro_step(last_N, cache)

    @staticmethod
    def ids(model: SmashBody, values: Sequence[int]) -> Tensor:
        """Whole numbers on the model's device."""
        return torch.tensor(values, device=model.device)


def of_sources(cache: MicroCache, sources_N: Tensor) -> MicroCache:
    """The micro decoder's cache for guesses, given the one that each follows."""
    return [(key[sources_N], value[sources_N]) for key, value in cache]
