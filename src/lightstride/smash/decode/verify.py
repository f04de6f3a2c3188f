"""The mode `verify`: a drafted segment is checked in the forward that merges it.

The columns u_1..u_n are the segment's tokens as they are, and m_2..m_n the candidates for its one
entry, the first k tokens merged.  For n = 3:

    columns   u_1 u_2 u_3 | m_2 m_3          u_i sees the cache and u_1..u_i;
    positions  0   1   2  |  1   2           m_k sees the cache and itself, a gist also u_1..u_k

The logits at u check the draft; of all columns the one that holds the accepted prefix is kept.

Shapes: B rows, Q columns, T taps, D hidden size.
"""

from collections.abc import Sequence

import torch

from lightstride.config.decoding import Settings
from lightstride.generate.batch.forward import Forward
from lightstride.generate.modes import Columns, Outcome
from lightstride.generate.rows import Row
from lightstride.generate.sampling import choose
from lightstride.smash.decode.accept import accept
from lightstride.smash.drafters.guesses import Budget, Guesses
from lightstride.smash.drafters.lookups import LookupDrafter, LookupHistory
from lightstride.smash.drafters.micro_chain import MicroChain
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.lookup import SHORTEST_RUN


class Verify:
    """Steps that leave one KV entry for all tokens they confirm."""

    reads_prompts = False

    def __init__(self, model: SmashBody, history: LookupHistory) -> None:
        self.model = model
        self.lookups = LookupDrafter(history, shortest=SHORTEST_RUN, num_branches=1)
        self.drafter = MicroChain(model, history, checked=True)
        self.taps = self.drafter.taps
        self.drafts: dict[str, Guesses] = {}
        """The draft of each row in the step at hand."""

    def scratch(self, settings: Settings) -> int:
        """A segment's tokens, and a column for each of its prefixes."""
        return 2 * self.model.config.max_segment - 1

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """The first token of each answer."""
        return begin_checked(rows, forward, self.taps)

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Nothing is remembered of prompts."""

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """Draft behind each row's certain token, and lay out what is to be checked."""
        drafts = self.draft(rows)
        self.drafts = {row.key: draft for row, draft in zip(rows, drafts, strict=True)}
        columns = []
        for row, draft in zip(rows, drafts, strict=True):
            tokens = [row.pending[-1], *draft.tokens]
            prefixes = range(2, len(tokens) + 1)
            columns.append(merged_columns(tokens, prefixes, gist=self.model.config.gist))
        return columns

    def draft(self, rows: Sequence[Row]) -> list[Guesses]:
        """Looked-up continuations, and drafts of the micro decoder for the other rows."""
        budgets = [
            Budget(
                num_guesses=self.model.config.max_segment - 1,
                depth=row.limit - len(row.tokens),
                least_probability=row.settings.confidence or 1.0,
            )
            for row in rows
        ]
        certain = [
            Budget(
                num_guesses=0 if row.pending[-1] in row.ends else budget.num_guesses,
                depth=budget.depth,
                least_probability=1.0 if budget.least_probability == 1 else 0.0,
            )
            for row, budget in zip(rows, budgets, strict=True)
        ]
        found = self.lookups.propose(rows, None, certain)
        others = [index for index, each in enumerate(found) if not each.guesses]
        if others:
            taps_BTD = torch.stack([each for row in rows if (each := row.taps_TD) is not None])
            drafts = self.drafter.propose(
                [rows[index] for index in others],
                taps_BTD[others],
                [budgets[index] for index in others],
            )
            for index, draft in zip(others, drafts, strict=True):
                found[index] = draft
        return found

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """The tokens of each draft that the base confirms, as one entry, and its next token."""
        drafts = [self.drafts[row.key] for row in rows]
        counts, following = accept(rows, drafts, forward.logits)
        sizes = [each.num_logits for each in asked]
        columns = [
            size + count - 1 if count else 0 for size, count in zip(sizes, counts, strict=True)
        ]
        goes_on_from = counts if self.model.config.gist else columns
        taps_BTD = forward.taps(self.taps, goes_on_from)
        outcomes = []
        for row, draft, count, token, column, taps_TD in zip(
            rows, drafts, counts, following, columns, taps_BTD, strict=True
        ):
            row.pending, row.taps_TD = [token], taps_TD
            outcomes.append(
                Outcome(
                    emitted=[*draft.tokens[:count], token],
                    kept=[column],
                    advance=count + 1,
                    scored=list(range(count + 1)),
                    drafted=len(draft.guesses),
                    accepted=count,
                )
            )
        return outcomes


def begin_checked(rows: Sequence[Row], forward: Forward, taps: Sequence[int]) -> list[list[int]]:
    """The first token of each answer, which is certain; rows note the features before it."""
    tokens = choose(forward.logits.at(range(len(rows)), [0] * len(rows)), rows, [[]] * len(rows))
    for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        row.pending = [token]
        row.taps_TD = torch.stack([forward.hidden[tap][index, -1] for tap in taps])
    return [[token] for token in tokens]


def merged_columns(tokens: list[int], prefixes: Sequence[int], *, gist: bool) -> Columns:
    """A segment's tokens, and behind them a column for each of these prefixes."""
    size, width = len(tokens), len(tokens) + len(prefixes)
    if not prefixes:
        return Columns.chain(tokens)
    sees_QQ = torch.eye(width, dtype=torch.bool)
    sees_QQ[:size, :size] = torch.ones(size, size).tril().bool()
    merged = {}
    for column, prefix in enumerate(prefixes, size):
        merged[column] = tokens[:prefix]
        if gist:
            sees_QQ[column, :prefix] = True
    return Columns(
        [*tokens, *[tokens[prefix - 1] for prefix in prefixes]],
        [*range(size), *[prefix - 1 for prefix in prefixes]],
        size,
        sees_QQ,
        merged,
    )
