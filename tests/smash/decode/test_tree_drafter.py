"""Trees of drafts, against enumeration, and the answers that come out of them."""

import random
from collections.abc import Sequence
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from helpers.agree import assert_same_greedy
from helpers.smash_toys import BASES, PROMPTS, sharp, toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ConfigError
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.rows import Row
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.lossless import branch_mask, tree_size, walk
from lightstride.smash.decode.tree_drafter import ROOT, Guess, Tree, TreeDrafter, attach
from lightstride.smash.hub import SmashModel

LENGTH = 16


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


@pytest.mark.parametrize("seed", range(5))
def test_columns_see_their_own_branch(seed: int) -> None:
    trees = [random_tree(seed, 2 + seed), random_tree(seed + 9, 9)]
    sees_BQQ = branch_mask(trees)
    for tree, sees_QQ in zip(trees, sees_BQQ, strict=True):
        for place in range(9):
            path = path_to(tree, place) if place < len(tree.tokens) else [place]
            assert sees_QQ[place].nonzero()[:, 0].tolist() == path
    for tree in trees:
        depths = [len(path_to(tree, place)) - 1 for place in range(len(tree.tokens))]
        assert tree.depths == depths


@pytest.mark.parametrize("seed", range(5))
def test_the_walk_finds_the_branch_that_is_said(seed: int) -> None:
    trees = [random_tree(seed, 12), random_tree(seed + 5, 7)]
    said_next = [[random.Random(f"{seed}{b}{q}").randrange(9) for q in range(12)] for b in (0, 1)]

    def choose(
        rows: Sequence[int], places: Sequence[int], said: Sequence[Sequence[int]]
    ) -> list[int]:
        for row, place, tokens in zip(rows, places, said, strict=True):
            assert [trees[row].tokens[q] for q in path_to(trees[row], place)[1:]] == tokens
        return [said_next[row][place] for row, place in zip(rows, places, strict=True)]

    paths, following = walk(trees, choose)
    for tree, wanted, path, token in zip(trees, said_next, paths, following, strict=True):
        confirmed = [
            place
            for place in range(len(tree.tokens))
            if all(
                tree.tokens[below] == wanted[above]
                for above, below in zip(
                    path_to(tree, place), path_to(tree, place)[1:], strict=False
                )
            )
        ]
        assert path == path_to(tree, max(confirmed, key=lambda place: tree.depths[place]))
        assert token == wanted[path[-1]]


@pytest.mark.parametrize("most", [1, 2, 5, 9, 40])
def test_a_tree_keeps_the_likeliest_guesses(most: int) -> None:
    rng = random.Random(most)
    guesses: list[Guess] = []
    for token in range(30):
        parent = rng.randrange(-1, len(guesses))
        above = 1.0 if parent == ROOT else guesses[parent].chance
        depth = 1 if parent == ROOT else guesses[parent].depth + 1
        guesses.append(Guess(above * rng.random(), token, parent, depth))
    tree = Tree([99])
    attach(tree, guesses, most)
    best = sorted(guesses, key=lambda guess: -guess.chance)[: most - 1]
    assert sorted(tree.tokens[1:]) == sorted(guess.token for guess in best)
    for place in range(1, len(tree.tokens)):
        guess = guesses[tree.tokens[place]]
        above = 99 if guess.parent == ROOT else guesses[guess.parent].token
        assert tree.tokens[tree.parents[place]] == above


@torch.no_grad()
def chance_of(model: SmashModel, taps_1TD: Tensor, tokens: Sequence[int]) -> float:
    """Of the tokens after the first, by the micro decoder fed one after the other."""
    vectors, cache = model.start_micro(taps_1TD, torch.tensor([tokens[0]]))
    chance = 1.0
    for step, (fed, said) in enumerate(pairwise(tokens)):
        if step:
            vectors, cache = model.go_on_micro(torch.tensor([fed]), cache)
        probabilities = model.micro_logits(vectors).softmax(-1)[0]
        ids = model.to_tokens(torch.arange(len(probabilities))).tolist()
        chance *= float(probabilities[ids.index(said)])
    return chance


def test_guesses_are_all_likely_continuations() -> None:
    """Every continuation above the confidence, where the tree has room for all of them."""
    few = (3, 77, 140, 201)
    model = toy(sharp(BASES["llama"]()), micro_vocabulary=few, max_segment=4)
    taps_BTD = torch.randn(2, len(model.taps), model.config.hidden_size)
    drafter = TreeDrafter(model, frozenset(), confidence=0.005, longest=0)
    drafter.most = 200
    rows = [Row(index, [1], b"", 9) for index in range(2)]
    found = drafter.guess(rows, taps_BTD, [12, 250], {0: 3, 1: 2})
    for row, first, room in [(0, 12, 3), (1, 250, 2)]:
        wanted = {}
        for depth in range(1, room + 1):
            for tokens in product(few, repeat=depth):
                chance = chance_of(model, taps_BTD[row : row + 1], [first, *tokens])
                if chance >= 0.005:
                    wanted[tokens] = chance
        guessed = {}
        for guess in found[row]:
            branch, parent = [guess.token], guess.parent
            while parent != ROOT:
                branch.append(found[row][parent].token)
                parent = found[row][parent].parent
            guessed[tuple(reversed(branch))] = guess.chance
        assert guessed == pytest.approx(wanted, rel=1e-4)
        assert max(map(len, guessed)) == room


class Knowing(TreeDrafter):
    """Guesses that hold the true continuation as the least likely of several."""

    truth: Sequence[Sequence[int]]

    def look_up(self, row: Row, room: int) -> list[Guess]:
        """The next three true tokens, each with two others that are held to be likelier."""
        guesses: list[Guess] = []
        parent, above, at = ROOT, 1.0, len(row.tokens)
        for depth, token in enumerate(self.truth[row.index][at : at + min(3, room)], 1):
            for other, share in ((1, 0.99), (2, 0.98), (0, 0.97)):
                guesses.append(Guess(above * share, (token + other) % 256, parent, depth))
            parent, above = len(guesses) - 1, guesses[-1].chance
        return guesses


@pytest.mark.parametrize("storage", ["dynamic", "static"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("base", BASES)
def test_true_branches_are_followed(
    base: str, temperature: float, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a tree leaves gaps in the cache, which must close up."""
    model = toy(sharp(BASES[base]()))
    settings = Settings(max_new_tokens=LENGTH, temperature=temperature, seed=4)
    plain = generate(PlainDecoder(model.base, byte_tokenizer()), PROMPTS, settings)
    monkeypatch.setattr(Knowing, "truth", [a.tokens for a in plain], raising=False)
    monkeypatch.setattr("lightstride.smash.decode.lossless.TreeDrafter", Knowing)
    asked = Settings(
        max_new_tokens=LENGTH, temperature=temperature, seed=4, mode="lossless", tree=12, lookup=0
    )
    answers = generate(SmashDecoder(model, byte_tokenizer(), storage=storage), PROMPTS, asked)
    for prompt, one, other in zip(PROMPTS, answers, plain, strict=True):
        if temperature:
            assert one.tokens == other.tokens
        else:
            assert_same_greedy(model.base, prompt, one.tokens, other.tokens)
    assert min(len(a.tokens) / a.macro_steps for a in answers) > 2
    assert all(len(a.tokens) - 1 <= a.kv_entries <= len(a.tokens) for a in answers)


@pytest.mark.parametrize("tree", [1, 2, 5, None])
@pytest.mark.parametrize("base", BASES)
def test_sampled_answers_are_the_plain_decoders(base: str, tree: int | None) -> None:
    model = toy(sharp(BASES[base]()))
    plain_settings = Settings(max_new_tokens=LENGTH, temperature=1.2, top_k=20, seed=6)
    plain = generate(PlainDecoder(model.base, byte_tokenizer()), PROMPTS, plain_settings)
    settings = Settings(
        max_new_tokens=LENGTH, temperature=1.2, top_k=20, seed=6, mode="lossless", tree=tree
    )
    answers = generate(SmashDecoder(model, byte_tokenizer()), PROMPTS, settings)
    assert [a.tokens for a in answers] == [a.tokens for a in plain]
    if tree == 1:
        assert all(len(step) == 1 for a in answers for step in a.steps)


def test_trees_are_smaller_in_batches() -> None:
    assert [tree_size(None, rows) for rows in (1, 2, 3, 8, 16, 64)] == [16, 16, 10, 4, 3, 3]
    assert [tree_size(24, rows) for rows in (1, 64)] == [24, 24]


def test_a_tree_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="tree is 0; it must be at least 1"):
        Settings(tree=0)
