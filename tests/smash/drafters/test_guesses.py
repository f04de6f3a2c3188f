"""Trees of guesses, against enumeration."""

import random

import pytest

from helpers.trees import path_to, random_tree
from lightstride.smash.drafters.guesses import (
    ROOT,
    Guess,
    Guesses,
    Tree,
    likeliest_branch,
    pooled,
)


@pytest.mark.parametrize("seed", range(5))
def test_columns_see_their_own_branch(seed: int) -> None:
    tree = random_tree(seed, 2 + 2 * seed)
    for place, sees_Q in enumerate(tree.mask()):
        assert sees_Q.nonzero()[:, 0].tolist() == path_to(tree, place)
    depths = [len(path_to(tree, place)) - 1 for place in range(len(tree.tokens))]
    assert tree.depths == depths


@pytest.mark.parametrize("most", [1, 2, 5, 9, 40])
def test_a_tree_keeps_the_likeliest_guesses(most: int) -> None:
    rng = random.Random(most)
    guesses: list[Guess] = []
    for token in range(30):
        parent = rng.randrange(-1, len(guesses))
        above = 1.0 if parent == ROOT else guesses[parent].probability
        depth = 1 if parent == ROOT else guesses[parent].depth + 1
        guesses.append(Guess(above * rng.random(), token, parent, depth))
    tree = Tree([99])
    tree.attach(guesses, most)
    best = sorted(guesses, key=lambda guess: -guess.probability)[: most - 1]
    assert sorted(tree.tokens[1:]) == sorted(guess.token for guess in best)
    for place in range(1, len(tree.tokens)):
        guess = guesses[tree.tokens[place]]
        above = 99 if guess.parent == ROOT else guesses[guess.parent].token
        assert tree.tokens[tree.parents[place]] == above


def test_pooled_guesses_keep_their_parents() -> None:
    chain = [Guess(0.5, 1, ROOT, 1), Guess(0.4, 2, 0, 2)]
    pool = pooled([chain, Guesses(chain).guesses, []])
    assert [guess.parent for guess in pool] == [ROOT, 0, ROOT, 2]
    assert [guess.token for guess in pool] == [1, 2, 1, 2]


def test_the_likeliest_branch_brings_most() -> None:
    guesses = [
        Guess(0.5, 1, ROOT, 1),
        Guess(0.4, 2, ROOT, 1),
        Guess(0.1, 3, 0, 2),
        Guess(0.35, 4, 1, 2),
        Guess(0.3, 5, 3, 3),
    ]
    branch = likeliest_branch(guesses)
    assert [(each.token, each.parent) for each in branch] == [(2, ROOT), (4, 0), (5, 1)]
    assert likeliest_branch([]) == []
