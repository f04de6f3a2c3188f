"""The mode lossless: the walk through trees, against enumeration, and the answers."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from helpers.agree import assert_same_greedy
from helpers.smash_toys import BASES, PROMPTS, a_row, sharp, toy
from helpers.toys import byte_tokenizer
from helpers.trees import path_to, random_tree
from lightstride.errors import ConfigError
from lightstride.generate import Mode, PlainDecoder, Settings, generate
from lightstride.generate.rows import Row
from lightstride.smash.decode.costs import CostTable, costs_of
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.lossless import RAGGED, Lossless, drafts_of, follow_trees
from lightstride.smash.decode.pacing import Pacing, pacing_of
from lightstride.smash.drafters.guesses import ROOT, Budget, Guess, Guesses, Kept, Tree
from lightstride.smash.hub import SmashModel

LENGTH = 16


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

    paths, following = follow_trees(trees, choose)
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


class Knowing:
    """A drafter whose guesses hold the true continuation as the least likely of several.

    It hears of every token that enters the cache, with its features.
    """

    reads_context = True

    def __init__(self, model: SmashModel, truth: Sequence[Sequence[int]]) -> None:
        self.taps = model.taps[-2:]
        self.truth = truth
        self.heard: dict[str, list[int]] = {}

    def cost(self, found: Sequence[Guesses]) -> float:
        return 0.0

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """The next three true tokens, each with two others that are held to be likelier."""
        assert taps_BTD.shape[:2] == (len(rows), 2)
        found = []
        for row, budget in zip(rows, budgets, strict=True):
            assert [*row.prompt, *row.tokens] == [*self.heard[row.key], *row.pending]
            guesses: list[Guess] = []
            parent, above, at = ROOT, 1.0, len(row.tokens)
            truth = self.truth[int(row.key)][at : at + min(3, budget.depth)]
            for depth, token in enumerate(truth, 1):
                for other, share in ((1, 0.99), (2, 0.98), (0, 0.97)):
                    guesses.append(Guess(above * share, (token + other) % 256, parent, depth))
                parent, above = len(guesses) - 1, guesses[-1].probability
            found.append(Guesses(guesses))
        return found

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Note the tokens; features must be there for each."""
        for row, each in zip(rows, kept, strict=True):
            assert each.taps_KTD.shape[:2] == (len(each.tokens), 2)
            self.heard.setdefault(row.key, []).extend(each.tokens)


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
    knowing = Knowing(model, [a.tokens for a in plain])
    lossless = Lossless([knowing], costs_of(model.base), Pacing())
    monkeypatch.setattr(
        "lightstride.smash.decode.decoder.smash_modes", lambda *_: {"lossless": lossless}
    )
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


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="no bfloat16 kernel on this machine",
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_exact_answers_are_the_same_in_bfloat16(temperature: float) -> None:
    """Token by token or several, alone or among others; also where tokens are as good as equal."""
    model = toy(sharp(BASES["llama"]())).bfloat16()
    decoder = SmashDecoder(model, byte_tokenizer())

    def answers(mode: Mode, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        settings = Settings(
            max_new_tokens=40, temperature=temperature, mode=mode, exact=True, seed=3
        )
        return [answer.tokens for answer in generate(decoder, prompts, settings)]

    alone = [answers("ar", [prompt])[0] for prompt in PROMPTS]
    assert [answers("lossless", [prompt])[0] for prompt in PROMPTS] == alone
    assert answers("ar", PROMPTS) == alone
    assert answers("lossless", PROMPTS) == alone


def test_exact_is_refused_where_more_than_one_column_is_believed() -> None:
    decoder = SmashDecoder(toy(), byte_tokenizer())
    with pytest.raises(ConfigError, match="exact is for the modes lossless and ar"):
        generate(decoder, PROMPTS, Settings(mode="trust", exact=True))


def test_fewer_guesses_a_row_in_batches() -> None:
    assert [drafts_of(rows) for rows in (1, 2, 4, 8, 16, 64)] == [16, 16, 16, 8, 4, 4]


def test_a_tree_that_is_asked_for_is_drafted_in_every_step_of_a_rest() -> None:
    model = toy(sharp(BASES["llama"]()))
    asked = Settings(max_new_tokens=LENGTH, mode="lossless", tree=8, lookup=0)
    pace = pacing_of(model).of_rows(1)
    steps = []
    for rests in (0, 1000):
        pace.rests = rests
        answer = generate(SmashDecoder(model, byte_tokenizer()), PROMPTS[:1], asked)[0]
        steps.append(answer.macro_steps)
        assert pace.rests == rests
    assert steps[0] == steps[1] < LENGTH


def test_only_unlike_rows_are_charged_for_being_unlike() -> None:
    """Two rows of one sure guess each: seconds of 2 columns and of 4."""
    costs = CostTable(lambda rows: [(rows, 1.0), (2 * rows, 1.2)])
    rows, trees = [a_row([1]), a_row([1])], [Tree([7]), Tree([7])]
    for tree in trees:
        tree.attach([Guess(0.9, 8, ROOT, 1)], 2)
    for padded, longer in ((True, 1.0), (False, RAGGED)):
        mode = Lossless([], costs, Pacing(), rows_are_padded=padded)
        choice = mode.choose(rows, trees, 2, 0.1)
        assert choice.counts == [1, 1]
        assert choice.rate == pytest.approx((2 + 0.9 + 0.9) / (1.2 * longer + 0.1))


def test_a_tree_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="tree is 0; it must be at least 1"):
        Settings(tree=0)
