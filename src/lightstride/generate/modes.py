"""Decoding modes: what a row asks the base in a step, and what it makes of the logits.

A session runs one forward for rows of all modes: each mode lays out its rows' columns, the session
puts them side by side, and each mode reads its rows' part of what comes back.

Shapes: B rows, Q columns, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightstride.config.decoding import Settings
from lightstride.generate.batch.cache import padded
from lightstride.generate.batch.forward import CachedBatch, Forward
from lightstride.generate.rows import Row
from lightstride.generate.sampling import choose

MOST_FULL = 0.75
"""Rows stand in one where padding them would leave no more than this share of columns in use."""


@dataclass(frozen=True)
class Columns:
    """New columns of one row; the base's logits are wanted of the first `num_logits`."""

    tokens: list[int]
    """The token of each column, any token for a merged one."""
    depths: list[int]
    """Its position behind the row's last token, from 0."""
    num_logits: int
    sees_QQ: Tensor | None = None
    """Which columns each sees; None: those before and itself."""
    merged: dict[int, list[int]] = field(default_factory=dict)
    """Columns that hold several tokens in one embedding: column -> tokens."""

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> "Columns":
        """Tokens one after the other."""
        return cls(list(tokens), list(range(len(tokens))), len(tokens))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a step for one row."""

    emitted: list[int]
    """Tokens for the answer."""
    kept: list[int]
    """Columns whose entries stay, ascending."""
    advance: int
    """Tokens that they stand for."""
    scored: list[int]
    """For each token emitted, the column whose logits chose it; shorter where none did."""
    drafted: int = 0
    accepted: int = 0


class DecodingMode(Protocol):
    """One way to decode; shared by all rows that have chosen it."""

    taps: Sequence[int]
    """The base's hidden states that it needs of every forward."""
    reads_prompts: bool
    """Whether `note_prompt` has to hear of all tokens of a prompt."""

    def scratch(self, settings: Settings) -> int:
        """Most columns that a row of these settings asks for in a step."""
        ...

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """Tokens for the answers, from the forward that read the ends of the prompts."""
        ...

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Hear of a part of each prompt that was read, in the last columns of the forward."""
        ...

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """The columns of each row, of `num_rows` in the step; rows may note what they are."""
        ...

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """Outcome of each row, given the logits of its columns."""
        ...


class OneToken:
    """The mode `ar`: one token a step."""

    taps: Sequence[int] = ()
    reads_prompts = False

    def scratch(self, settings: Settings) -> int:
        """One column."""
        return 1

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """The first token of each answer."""
        logits_BV = forward.logits.at(range(len(rows)), [0] * len(rows))
        tokens = choose(logits_BV, rows, [[]] * len(rows))
        for row, token in zip(rows, tokens, strict=True):
            row.pending = [token]
        return [[token] for token in tokens]

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Nothing is remembered of prompts."""

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """The latest token of each row."""
        return [Columns.chain(row.pending) for row in rows]

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """The next token of each row."""
        return [
            Outcome(emitted=tokens, kept=[0], advance=1, scored=[0])
            for tokens in self.begin(rows, forward)
        ]


Merge = Callable[[Sequence[Sequence[int]]], Tensor]
"""Some runs of tokens -> one embedding each, shape (N, D)."""


class ColumnReader:
    """Runs the columns of rows in one forward; `merge` is a model's whose grafts merge."""

    def __init__(self, merge: Merge | None = None) -> None:
        self.merge = merge

    def read(
        self, batch: CachedBatch, rows: slice, asked: Sequence[Columns], taps: Sequence[int]
    ) -> Forward:
        """The forward over all columns, rows padded behind; logits of the first of them."""
        device = batch.model.device
        if batch.flattens and are_ragged(asked):
            tokens, depths = [each.tokens for each in asked], [each.depths for each in asked]
            sees_BQQ = column_mask(asked, device)
            assert sees_BQQ is not None
            return batch.forward_flat(rows, tokens, depths, sees_BQQ, taps)
        tokens_BQ, _ = padded([each.tokens for each in asked], device)
        depths_BQ, _ = padded([each.depths for each in asked], device)
        logit_columns = range(max(each.num_logits for each in asked))
        embeddings_BQD = self.embedded(batch, asked, tokens_BQ)
        return batch.forward(
            rows,
            tokens_BQ=tokens_BQ if embeddings_BQD is None else None,
            embeddings_BQD=embeddings_BQD,
            depths_BQ=depths_BQ,
            sees_BQQ=column_mask(asked, device),
            taps=taps,
            logit_columns=logit_columns,
        )

    def embedded(
        self, batch: CachedBatch, asked: Sequence[Columns], tokens_BQ: Tensor
    ) -> Tensor | None:
        """Embeddings of all columns where some are merged, (B, Q, D); None where none is."""
        places = [(b, q) for b, each in enumerate(asked) for q in each.merged]
        if not places:
            return None
        assert self.merge is not None
        merged_ND = self.merge([run for each in asked for run in each.merged.values()])
        where = tuple(
            torch.tensor(place, device=tokens_BQ.device) for place in zip(*places, strict=True)
        )
        embeddings_BQD: Tensor = batch.model.get_input_embeddings()(tokens_BQ)
        return embeddings_BQD.index_put(where, merged_ND)


def are_ragged(asked: Sequence[Columns]) -> bool:
    """Whether rows padded to one width would have many columns for nothing."""
    sizes = [len(each.tokens) for each in asked]
    return (
        sum(sizes) <= MOST_FULL * max(sizes) * len(sizes)
        and all(each.num_logits == len(each.tokens) for each in asked)
        and not any(each.merged for each in asked)
    )


def column_mask(asked: Sequence[Columns], device: torch.device) -> Tensor | None:
    """Which of the new columns each sees, shape (B, Q, Q); None: those before and itself.

    Columns that fill up a row see themselves.
    """
    width = max(len(each.tokens) for each in asked)
    if all(each.sees_QQ is None and len(each.tokens) == width for each in asked):
        return None
    sees_BQQ = torch.eye(width, dtype=torch.bool).repeat(len(asked), 1, 1)
    for sees_QQ, each in zip(sees_BQQ, asked, strict=True):
        own = len(each.tokens)
        causal = torch.ones(own, own).tril().bool()
        sees_QQ[:own, :own] = causal if each.sees_QQ is None else each.sees_QQ
    return sees_BQQ.to(device)
