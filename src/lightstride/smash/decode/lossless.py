"""The mode `lossless`: the base checks a tree of drafts, and keeps the branch that is its own.

All tokens of the tree are columns of one forward, each seeing the entries so far and its own
branch (as in SpecInfer, arXiv 2305.09781).  The base's next token after the first is chosen as the
plain decoder chooses it, greedily or by the row's own random number for that place; if it is among
the children, the walk goes on there, else it is what follows.  So nothing is ever rejected by
chance: sampled answers, too, are those of the plain decoder, token for token.

Shapes: B rows, K columns with logits, T taps, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightstride.config.decoding import Settings
from lightstride.generate.forward import Forward
from lightstride.generate.modes import Columns, Outcome
from lightstride.generate.rows import Row
from lightstride.generate.sampling import choose, likeliest
from lightstride.smash.decode.verify import begin_checked
from lightstride.smash.drafters.guesses import Budget, Drafter, Guess, Kept, Tree, pooled

TREE_SIZE = 16
"""Columns of a tree of one row; SmolLM2-135M reads 16 in 1.18 times the time of one."""
BATCH_TREE_BUDGET = 32
"""Columns of all trees together, beyond which they cost the more the more there are."""
MIN_TREE_SIZE = 3
"""Columns of a tree however many rows there are."""

Choice = Callable[[Sequence[int], Sequence[int], Sequence[Sequence[int]]], list[int]]
"""The base's tokens, given rows, the place in each row's tree, and its branch up to there."""


class Lossless:
    """Steps that leave one KV entry a token; guesses of all drafters share a row's tree."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self.drafters = drafters
        self.taps: Sequence[int] = sorted({tap for drafter in drafters for tap in drafter.taps})
        self.reads_prompts = any(drafter.reads_context for drafter in drafters)
        self.trees: dict[str, Tree] = {}
        """The tree of each row in the step at hand."""

    def scratch(self, settings: Settings) -> int:
        """A tree."""
        return settings.tree or TREE_SIZE

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """The first token of each answer."""
        return begin_checked(rows, forward, self.taps)

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Hand what was read of the prompts to drafters with a state."""
        width = max(map(len, parts))
        columns = [range(width - len(part), width) for part in parts]
        self.tell_drafters(rows, parts, columns, forward)

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """Draft a tree behind each row's certain token."""
        sizes = [tree_size(row.settings.tree, num_rows) for row in rows]
        trees = [Tree([row.pending[-1]]) for row in rows]
        for tree, guesses, size in zip(trees, self.draft(rows, sizes), sizes, strict=True):
            tree.attach(guesses, size)
        self.trees = {row.key: tree for row, tree in zip(rows, trees, strict=True)}
        return [
            Columns(tree.tokens, tree.depths, len(tree.tokens), tree.mask())
            if len(tree.tokens) > 1
            else Columns.chain(tree.tokens)
            for tree in trees
        ]

    def draft(self, rows: Sequence[Row], sizes: Sequence[int]) -> list[list[Guess]]:
        """The guesses of all drafters for each row."""
        pools: list[list[Guess]] = [[] for _ in rows]
        taps_BTD = torch.stack([each for row in rows if (each := row.taps_TD) is not None])
        for drafter in self.drafters:
            budgets = [
                Budget(
                    num_guesses=0 if row.pending[-1] in row.ends else size - 1,
                    depth=row.limit - len(row.tokens),
                    least_probability=row.settings.confidence or 1.0,
                    rivals=[guess.probability for guess in pool],
                )
                for row, size, pool in zip(rows, sizes, pools, strict=True)
            ]
            chosen = [self.taps.index(tap) for tap in drafter.taps]
            found = drafter.propose(rows, taps_BTD[:, chosen], budgets)
            pools = [pooled([pool, more.guesses]) for pool, more in zip(pools, found, strict=True)]
        return pools

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """The branch of each tree that the base confirms, and its next token."""
        trees = [self.trees[row.key] for row in rows]
        paths, following = follow_trees(trees, base_choice(rows, forward.logits_BKV))
        taps_BTD = forward.taps(self.taps, [path[-1] for path in paths])
        outcomes = []
        for row, tree, path, token, taps_TD in zip(
            rows, trees, paths, following, taps_BTD, strict=True
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


def base_choice(rows: Sequence[Row], logits_BKV: Tensor) -> Choice:
    """The base's own choice of tokens, as in plain decoding."""
    if all(row.is_plain for row in rows):
        best = likeliest(logits_BKV).tolist()
        return lambda members, places, _: [best[b][q] for b, q in zip(members, places, strict=True)]

    def choice(
        members: Sequence[int], places: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[int]:
        logits_NV = logits_BKV[list(members), list(places)]
        return choose(logits_NV, [rows[b] for b in members], branches)

    return choice


def tree_size(asked: int | None, num_rows: int) -> int:
    """Most tokens of each tree; it grows again when other rows have ended."""
    return asked or max(MIN_TREE_SIZE, min(TREE_SIZE, BATCH_TREE_BUDGET // num_rows))


def follow_trees(trees: Sequence[Tree], choose: Choice) -> tuple[list[list[int]], list[int]]:
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
