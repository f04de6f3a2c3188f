"""The mode `lossless`: the base checks a tree of drafts, and keeps the branch it would have said.

All tokens of the tree are columns of one forward, each seeing the entries so far and its own
branch (as in SpecInfer, arXiv 2305.09781).  The base's next token after the first is chosen as the
plain decoder chooses it, greedily or by the row's own random number for that place; if it is among
the children, the walk goes on there, else it is what follows.  So nothing is ever rejected by
chance: sampled answers, too, are those of the plain decoder, token for token.

Shapes: B rows, T taps, D hidden size, Q columns of a tree, K places of a path, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightstride.generate.forward import Forward, Sequences
from lightstride.generate.rows import Row
from lightstride.generate.sampler import Sampler
from lightstride.smash.decode.outcome import Checked, pad, pick
from lightstride.smash.decode.tree_drafter import Tree, TreeDrafter
from lightstride.smash.model.body import SmashBody

ONE_ROW = 16
"""Columns of a tree of one row; SmolLM2-135M reads 16 in 1.18 times the time of one."""
ALL_ROWS = 32
"""Columns of all trees together, beyond which they cost the more the more there are."""
FEWEST = 3
"""Columns of a tree however many rows there are."""

Choice = Callable[[Sequence[int], Sequence[int], Sequence[Sequence[int]]], list[int]]
"""The base's tokens, given rows, the place in each row's tree, and what was said since."""


class Branching:
    """Steps that leave one KV entry a token."""

    def __init__(self, model: SmashBody, sampler: Sampler, ends: frozenset[int]) -> None:
        self.model = model
        self.sampler = sampler
        settings = sampler.settings
        assert settings.confidence is not None
        self.drafter = TreeDrafter(
            model, ends, confidence=settings.confidence, longest=settings.lookup
        )
        self.scratch = settings.tree or ONE_ROW

    def take_step(
        self, sequences: Sequences, batch: Sequence[Row], taps_BTD: Tensor, first: Sequence[int]
    ) -> Checked:
        """Draft after `first`, check, and keep the entries of what is confirmed."""
        most = tree_size(self.sampler.settings.tree, len(batch))
        trees = self.drafter.draft(batch, taps_BTD, first, most)
        forward = self.run(sequences, trees)
        paths, following = walk(trees, self.choice(batch, forward.logits_BQV))
        accepted = [
            [tree.tokens[place] for place in path[1:]]
            for tree, path in zip(trees, paths, strict=True)
        ]
        columns_BK, lengths_B = pad(paths, self.model.device)
        sequences.keep_paths(columns_BK, lengths_B)
        sequences.advance(lengths_B)
        last_B = columns_BK.gather(1, lengths_B[:, None] - 1)[:, 0]
        return Checked(accepted, following, pick(forward, last_B), lengths_B.tolist())

    def run(self, sequences: Sequences, trees: Sequence[Tree]) -> Forward:
        """The forward over all trees, behind each row's own entries."""
        tokens_BQ, _ = pad([tree.tokens for tree in trees], self.model.device)
        depths_BQ, _ = pad([tree.depths for tree in trees], self.model.device)
        width = tokens_BQ.shape[1]
        return sequences.forward(
            tokens_BQ=tokens_BQ,
            positions_BQ=sequences.position_B[:, None] + 1 + depths_BQ,
            sees_BQQ=branch_mask(trees).to(self.model.device),
            slots_BQ=sequences.used_B[:, None] + torch.arange(width, device=tokens_BQ.device),
            taps=self.model.taps,
            num_logits=width,
        )

    def choice(self, batch: Sequence[Row], logits_BQV: Tensor) -> Choice:
        """How the base chooses its tokens: as in plain decoding."""
        if self.sampler.settings.is_greedy and not self.sampler.reads_history:
            best = logits_BQV.argmax(-1).tolist()
            return lambda rows, places, _: [best[b][q] for b, q in zip(rows, places, strict=True)]

        def choose(
            rows: Sequence[int], places: Sequence[int], said: Sequence[Sequence[int]]
        ) -> list[int]:
            logits_NV = logits_BQV[list(rows), list(places)]
            chosen: list[int] = self.sampler.choose(
                logits_NV, [batch[b] for b in rows], said
            ).tolist()
            return chosen

        return choose


def tree_size(asked: int | None, num_rows: int) -> int:
    """Most tokens of each tree; it grows again when other rows have ended."""
    return asked or max(FEWEST, min(ONE_ROW, ALL_ROWS // num_rows))


def walk(trees: Sequence[Tree], choose: Choice) -> tuple[list[list[int]], list[int]]:
    """The places of each tree that the base confirms, from the first, and its token after them."""
    paths = [[0] for _ in trees]
    following = [0] * len(trees)
    walking = list(range(len(trees)))
    while walking:
        places = [paths[b][-1] for b in walking]
        said = [[trees[b].tokens[place] for place in paths[b][1:]] for b in walking]
        chosen = choose(walking, places, said)
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


def branch_mask(trees: Sequence[Tree]) -> Tensor:
    """Which columns each sees: its own branch up to itself, shape (B, Q, Q); fillers themselves."""
    width = max(len(tree.tokens) for tree in trees)
    sees_BQQ = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for sees_QQ, tree in zip(sees_BQQ, trees, strict=True):
        for place, parent in enumerate(tree.parents[1:], 1):
            sees_QQ[place] |= sees_QQ[parent]
    return sees_BQQ
