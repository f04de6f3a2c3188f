"""Guesses of the micro decoder, against enumeration."""

from collections.abc import Sequence
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from helpers.smash_toys import BASES, a_row, sharp, toy
from lightstride.smash.drafters.guesses import ROOT, Budget
from lightstride.smash.drafters.micro_tree import MicroTree
from lightstride.smash.hub import SmashModel


@torch.no_grad()
def probability_of(model: SmashModel, taps_1TD: Tensor, tokens: Sequence[int]) -> float:
    """Of the tokens after the first, by the micro decoder fed one after the other."""
    vectors, cache = model.first_micro_step(taps_1TD, torch.tensor([tokens[0]]))
    chance = 1.0
    for step, (fed, said) in enumerate(pairwise(tokens)):
        if step:
            vectors, cache = model.next_micro_step(torch.tensor([fed]), cache)
        probabilities = model.micro_logits(vectors).softmax(-1)[0]
        ids = model.vocabulary_ids(torch.arange(len(probabilities))).tolist()
        chance *= float(probabilities[ids.index(said)])
    return chance


def test_guesses_are_all_likely_continuations() -> None:
    """Every continuation above the confidence, where the tree has room for all of them."""
    few = (3, 77, 140, 201)
    model = toy(sharp(BASES["llama"]()), micro_vocabulary=few, max_segment=4)
    taps_BTD = torch.randn(2, len(model.taps), model.config.hidden_size)
    rows = [a_row([1], pending=[token]) for token in (12, 250)]
    budgets = [Budget(num_guesses=199, depth=depth, least_probability=0.005) for depth in (3, 2)]
    found = [each.guesses for each in MicroTree(model).propose(rows, taps_BTD, budgets)]
    for row, first, room in [(0, 12, 3), (1, 250, 2)]:
        wanted = {}
        for depth in range(1, room + 1):
            for tokens in product(few, repeat=depth):
                chance = probability_of(model, taps_BTD[row : row + 1], [first, *tokens])
                if chance >= 0.005:
                    wanted[tokens] = chance
        guessed = {}
        for guess in found[row]:
            branch, parent = [guess.token], guess.parent
            while parent != ROOT:
                branch.append(found[row][parent].token)
                parent = found[row][parent].parent
            guessed[tuple(reversed(branch))] = guess.probability
        assert guessed == pytest.approx(wanted, rel=1e-4)
        assert max(map(len, guessed)) == room
