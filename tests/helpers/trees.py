"""Random trees of drafts, and the way to each of their tokens."""

import random

from lightstride.smash.drafters.guesses import ROOT, Tree


def random_tree(seed: int, size: int) -> Tree:
    rng = random.Random(seed)
    tree = Tree([7])
    while len(tree.tokens) < size:
        tree.add(rng.randrange(len(tree.tokens)), rng.randrange(9))
    return tree


def path_to(tree: Tree, place: int) -> list[int]:
    """Places from the first token to this one."""
    above = tree.parents[place]
    return [place] if above == ROOT else [*path_to(tree, above), place]
