"""The mode `lossless`: the base checks a tree of drafts, and keeps the branch that is its own.

All tokens of the tree are columns of one forward, each seeing the entries so far and its own
branch (as in SpecInfer, arXiv 2305.09781).  The base's next token after the first is chosen as the
plain decoder chooses it, greedily or by the row's own random number for that place; if it is among
the children, the walk goes on there, else it is what follows.  So nothing is ever rejected by
chance: sampled answers, too, are those of the plain decoder, token for token.

Each step checks as many guesses, of all rows together, as bring the most tokens a second on this
machine (`budget.py`, `costs.py`), believes drafters as far as they were right (`pacing.py`), and is
the plain decoder's where drafting does not pay.

Shapes: B rows, T taps, D hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.config.decoding import Settings
from lightstride.generate.batch.folded import can_fold
from lightstride.generate.batch.forward import Forward, Logits
from lightstride.generate.modes import Columns, Outcome
from lightstride.generate.rows import Row
from lightstride.generate.sampling import choose, likeliest
from lightstride.memory.cache import Memory
from lightstride.smash.decode.budget import Choice, best_together, best_width
from lightstride.smash.decode.costs import CostTable, costs_of
from lightstride.smash.decode.pacing import Pacing, pacing_of
from lightstride.smash.drafters.guesses import (
    Budget,
    Drafter,
    Guess,
    Kept,
    Tree,
    likeliest_branch,
    pooled,
)

MOST_COLUMNS = 48
"""Columns of a row: what a step may try of a run that was there before, and of drafts."""
MOST_DRAFTS = 16
"""Guesses of a drafter for one row; chosen, not measured."""
BATCH_DRAFTS = 64
"""Guesses of a drafter for all rows, beyond which those of a row are fewer."""
LEAST_DRAFTS = 4
RAGGED = 1.15
"""What columns beyond one a row are taken to cost more than was measured, of several rows.  It
comes from tables of alike rows (LOG.md, "drafts that pay"); with tables of unlike ones, as they are
now, 1 and 1.07 were neither better nor worse than it."""

BaseChoice = Callable[[Sequence[int], Sequence[int], Sequence[Sequence[int]]], list[int]]
"""The base's tokens, given rows, the place in each row's tree, and its branch up to there."""


class Lossless:
    """Steps that leave one KV entry a token; guesses of all drafters share a row's tree."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        costs: CostTable,
        pacing: Pacing,
        *,
        rows_are_padded: bool = False,
    ) -> None:
        self.drafters = drafters
        self.reads_prompts = any(drafter.reads_context for drafter in drafters)
        self.costs = costs
        self.pacing = pacing
        self.best = best_width if rows_are_padded else best_together
        self.ragged = 1.0 if rows_are_padded else RAGGED
        self.all_taps: Sequence[int] = sorted({tap for each in drafters for tap in each.taps})
        self.taps: Sequence[int] = self.all_taps
        """The base's hidden states that the next forward is to keep: none in a rest."""
        self.trees: dict[str, Tree] = {}
        """The tree of each row in the step at hand."""

    def scratch(self, settings: Settings) -> int:
        """A tree."""
        return settings.tree or MOST_COLUMNS

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """The first token of each answer, which is certain; rows note the features before it."""
        first = forward.logits.at(range(len(rows)), [0] * len(rows))
        tokens = choose(first, rows, [[]] * len(rows))
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.pending = [token]
            row.taps_TD = torch.stack([forward.hidden[tap][index, -1] for tap in self.all_taps])
        return [[token] for token in tokens]

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Hand what was read of the prompts to drafters with a state."""
        width = max(map(len, parts))
        columns = [range(width - len(part), width) for part in parts]
        self.tell_drafters(rows, parts, columns, forward)

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """Draft a tree behind each row's certain token, and cut all to what pays."""
        is_asked = any(row.settings.tree is not None for row in rows)
        pace = self.pacing.of_rows(num_rows)
        drafts = is_asked or pace.start_step()
        drafts = drafts and all(row.taps_TD is not None for row in rows)
        free = [not each.taps for each in self.drafters]
        pools, cost = self.draft(rows, num_rows, [is_free or drafts for is_free in free])
        trees = self.grown(rows, pools)
        choice = self.choose(rows, trees, num_rows, cost)
        if drafts and not is_asked and not all(free):
            without = [[guess for guess in pool if free[guess.drafter]] for pool in pools]
            plain = self.choose(rows, self.grown(rows, without), num_rows, 0.0)
            pace.note_gain(choice.rate / plain.rate)
        for tree, count in zip(trees, choice.counts, strict=True):
            tree.cut(1 + count)
        self.trees = {row.key: tree for row, tree in zip(rows, trees, strict=True)}
        resting = pace.rests > 0 and not is_asked and not self.reads_prompts
        self.taps = [] if resting else self.all_taps
        return [
            Columns.chain(tree.tokens)
            if tree.is_chain
            else Columns(tree.tokens, tree.depths, len(tree.tokens), tree.mask())
            for tree in trees
        ]

    def grown(self, rows: Sequence[Row], pools: Sequence[Sequence[Guess]]) -> list[Tree]:
        """A tree of each row with all guesses that it may hold; of an exact row one branch, which
        then stands behind its entries as if read token by token."""
        trees = [Tree([row.pending[-1]]) for row in rows]
        for row, tree, pool in zip(rows, trees, pools, strict=True):
            own = likeliest_branch(pool) if row.settings.exact else pool
            tree.attach(own, self.scratch(row.settings))
        return trees

    def choose(
        self, rows: Sequence[Row], trees: Sequence[Tree], num_rows: int, drafting: float
    ) -> Choice:
        """How many guesses of each tree to check; all of those whose size was asked for."""
        is_fixed = [row.settings.tree is not None for row in rows]
        fixed = [tree.chances if f else [] for f, tree in zip(is_fixed, trees, strict=True)]
        certain = sum(map(len, fixed))
        most = num_rows * (1 + max(len(tree.tokens) for tree in trees)) + certain
        times = self.costs.curve(num_rows, most).copy()
        if num_rows > 1:
            times[num_rows + 1 :] *= self.ragged
        choice = self.best(
            [[] if f else tree.chances for f, tree in zip(is_fixed, trees, strict=True)],
            num_rows,
            times[certain:],
            drafting * float(times[num_rows]),
        )
        counts = [len(own) or n for own, n in zip(fixed, choice.counts, strict=True)]
        return Choice(counts, choice.rate)

    def draft(
        self, rows: Sequence[Row], num_rows: int, wanted: Sequence[bool]
    ) -> tuple[list[list[Guess]], float]:
        """The guesses of the wanted drafters for each row, and what they cost (`Drafter.cost`)."""
        pools: list[list[Guess]] = [[] for _ in rows]
        cost = 0.0
        for number, drafter in enumerate(self.drafters):
            if not wanted[number]:
                continue
            most = drafts_of(num_rows) if drafter.taps else MOST_COLUMNS - 1
            budgets = [
                Budget(
                    num_guesses=0
                    if row.pending[-1] in row.ends
                    else min(most, self.scratch(row.settings) - 1),
                    depth=row.limit - len(row.tokens),
                    least_probability=row.settings.confidence or 1.0,
                    rivals=[guess.probability for guess in pool],
                )
                for row, pool in zip(rows, pools, strict=True)
            ]
            found = drafter.propose(rows, self.features(rows, drafter), budgets)
            cost += drafter.cost(found)
            pools = [
                pooled([pool, self.pacing.corrected(more.guesses, number)])
                for pool, more in zip(pools, found, strict=True)
            ]
        return pools, cost

    def features(self, rows: Sequence[Row], drafter: Drafter) -> Tensor | None:
        """The states of the rows' last entries that a drafter drafts from, (B, T, D)."""
        if not drafter.taps:
            return None
        taps_BTD = torch.stack([each for row in rows if (each := row.taps_TD) is not None])
        return taps_BTD[:, [self.all_taps.index(tap) for tap in drafter.taps]]

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """The branch of each tree that the base confirms, and its next token."""
        trees = [self.trees[row.key] for row in rows]
        paths, following = follow_trees(trees, base_choice(rows, forward.logits))
        self.pacing.learn(trees, paths)
        features: Sequence[Tensor | None] = [None] * len(rows)
        if self.taps:
            features = list(forward.taps(self.taps, [path[-1] for path in paths]))
        outcomes = []
        for row, tree, path, token, taps_TD in zip(
            rows, trees, paths, following, features, strict=True
        ):
            row.pending, row.taps_TD = [token], taps_TD
            outcomes.append(
                Outcome(
                    emitted=[*(tree.tokens[place] for place in path[1:]), token],
                    kept=path,
                    advance=len(path),
                    scored=path,
                    drafted=len(tree.tokens) - 1,
                    accepted=len(path) - 1,
                )
            )
        self.taps = self.all_taps
        tokens = [
            [tree.tokens[place] for place in path] for tree, path in zip(trees, paths, strict=True)
        ]
        self.tell_drafters(rows, tokens, paths, forward)
        return outcomes

    def tell_drafters(
        self,
        rows: Sequence[Row],
        tokens: Sequence[Sequence[int]],
        columns: Sequence[Sequence[int]],
        forward: Forward,
    ) -> None:
        """Hand tokens that are now in the cache, and their features, to drafters with a state."""
        for drafter in self.drafters:
            if drafter.reads_context:
                kept = []
                for index, (own, places) in enumerate(zip(tokens, columns, strict=True)):
                    hidden = [forward.hidden[tap][index, list(places)] for tap in drafter.taps]
                    kept.append(Kept(own, torch.stack(hidden, dim=1)))
                drafter.accept(rows, kept)


def lossless_mode(
    base: PreTrainedModel, drafters: Sequence[Drafter], owner: nn.Module, memory: Memory | None
) -> Lossless:
    """The mode on a base; sessions share what they learn of the owner's drafters."""
    return Lossless(
        drafters,
        costs_of(base),
        pacing_of(owner),
        rows_are_padded=memory is not None or not can_fold(base),
    )


def base_choice(rows: Sequence[Row], logits: Logits) -> BaseChoice:
    """The base's own choice of tokens, as in plain decoding."""
    if all(row.is_plain for row in rows):
        best_N = likeliest(logits.flat_NV).tolist()
        return lambda members, places, _: [
            best_N[logits.starts[b] + q] for b, q in zip(members, places, strict=True)
        ]

    def choice(
        members: Sequence[int], places: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[int]:
        return choose(logits.at(members, places), [rows[b] for b in members], branches)

    return choice


def drafts_of(num_rows: int) -> int:
    """Most guesses of a drafter for each row."""
    return max(LEAST_DRAFTS, min(MOST_DRAFTS, BATCH_DRAFTS // num_rows))


def follow_trees(trees: Sequence[Tree], choose: BaseChoice) -> tuple[list[list[int]], list[int]]:
    """The places of each tree that the base confirms, from the first, and its token after them."""
    paths = [[0] for _ in trees]
    following = [0] * len(trees)
    walking = list(range(len(trees)))
    while walking:
        places = [paths[b][-1] for b in walking]
        branches = [[trees[b].tokens[place] for place in paths[b][1:]] for b in walking]
        chosen = choose(walking, places, branches)
        still = []
        for b, place, token in zip(walking, places, chosen, strict=True):
            child = trees[b].children.get((place, token))
            if child is None:
                following[b] = token
            else:
                paths[b].append(child)
                still.append(b)
        walking = still
    return paths, following
