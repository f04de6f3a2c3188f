"""Trees of an EAGLE-3 head: its cached guesses against a head that reads everything anew."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from helpers.headed_toys import DRAFTED, KINDS, random_head
from helpers.smash_toys import a_row
from lightstride.smash.drafters.eagle3_tree import STEP_COST, Eagle3Tree
from lightstride.smash.drafters.guesses import ROOT, Budget, Guess, Kept
from lightstride.smash.model.eagle3 import Eagle3Head

torch.manual_seed(3)
TABLE_VD = torch.randn(260, 32)


def embed(tokens: Tensor) -> Tensor:
    return TABLE_VD[tokens]


class Anew:
    """Attention of one branch over all its places, in the window that the head has."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        seen = slice(-self.window if self.window else None, None)
        keys, values = torch.cat(self.keys, 2)[:, :, seen], torch.cat(self.values, 2)[:, :, seen]
        return scaled_dot_product_attention(query, keys, values, enable_gqa=True)


def following(head: Eagle3Head, tokens: Sequence[int], taps: Tensor) -> list[float]:
    """Probabilities of what follows `tokens`, the first of which have features."""
    table = embed if head.embedding is None else head.embedding
    attend, fused = Anew(head.config.window), head.fuse(taps[None])
    state = fused[:, :0]
    for place, token in enumerate(tokens[1:]):
        given = fused[:, place : place + 1] if place < len(taps) else state
        state = head(table(torch.tensor([[token]])), given, torch.tensor([[place]]), attend)
    probabilities: list[float] = head.logits(state)[0, 0].softmax(-1).tolist()
    return probabilities


def likely(
    head: Eagle3Head, tokens: Sequence[int], taps: Tensor, budget: Budget
) -> dict[tuple[int, ...], float]:
    """All branches behind `tokens` that are likely enough, and their probabilities."""
    found: dict[tuple[int, ...], float] = {}
    level: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(budget.depth):
        level = {
            (*branch, token): before * more
            for branch, before in level.items()
            for token, more in zip(DRAFTED, following(head, [*tokens, *branch], taps), strict=True)
            if before * more >= budget.least_probability
        }
        found |= level
    return found


def branches(guesses: Sequence[Guess]) -> dict[tuple[int, ...], float]:
    """Probability of each branch."""
    tokens: list[tuple[int, ...]] = []
    for guess in guesses:
        before = () if guess.parent == ROOT else tokens[guess.parent]
        tokens.append((*before, guess.token))
    return {branch: guess.probability for branch, guess in zip(tokens, guesses, strict=True)}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_guesses_are_those_of_a_head_that_reads_everything_anew(changes: dict[str, object]) -> None:
    """Two rows of other lengths, told of their tokens in parts, and drafted for twice."""
    head = random_head(**changes)
    head.lm_head.weight.mul_(2.5)
    drafter = Eagle3Tree(head, embed)
    texts = [[5, 9, 200, 7, 31], [66, 3]]
    rows = [a_row(text) for text in texts]
    budgets = [Budget(num_guesses=199, depth=depth, least_probability=0.005) for depth in (3, 2)]
    taps = [torch.randn(len(text) + 2, 3, 32) for text in texts]
    for index, row in enumerate(rows):  # the prompt in two parts for the first row
        for part in (slice(0, 2), slice(2, len(texts[index]))):
            if texts[index][part]:
                drafter.accept([row], [Kept(texts[index][part], taps[index][part])])
    for more in ([], [77, 150]):
        if more:
            kept = [Kept(more, each[-2:]) for each in taps]
            drafter.accept(rows, kept)
            for text in texts:
                text += more
        for row in rows:
            row.pending = [77]
        found = drafter.propose(rows, torch.zeros(2, 3, 32), budgets)
        assert drafter.cost(found) == pytest.approx(3 * STEP_COST)
        for text, each, guesses, budget in zip(texts, taps, found, budgets, strict=True):
            wanted = likely(head, [*text, 77], each[: len(text)], budget)
            got = branches(guesses.guesses)
            assert max(map(len, got)) == budget.depth
            assert got == pytest.approx(wanted, rel=1e-3)


def test_a_row_that_is_gone_is_forgotten() -> None:
    drafter = Eagle3Tree(random_head(), embed)
    row = a_row([1, 2], pending=[3])
    drafter.accept([row], [Kept([1, 2], torch.randn(2, 3, 32))])
    assert len(drafter.contexts) == 1
    del row
    assert len(drafter.contexts) == 0
