"""The mode `trust`: what the micro decoder drafts is the answer, as published.

After the base's own token the micro decoder drafts on while it is sure enough; nothing is checked.
The next forward reads the segment as one column, its tokens merged, and leaves one KV entry.

Shapes: B rows, T taps, D hidden size, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from lightstride.config.decoding import Settings
from lightstride.generate.batch.forward import Forward
from lightstride.generate.modes import Columns, Outcome
from lightstride.generate.rows import Row
from lightstride.generate.sampling import choose
from lightstride.smash.drafters.guesses import Budget
from lightstride.smash.drafters.lookups import LookupHistory
from lightstride.smash.drafters.micro_chain import MicroChain
from lightstride.smash.model.body import SmashBody


class Trust:
    """Steps of one KV entry, nothing checked."""

    reads_prompts = False

    def __init__(self, model: SmashBody, history: LookupHistory) -> None:
        self.model = model
        self.drafter = MicroChain(model, history)
        self.taps = self.drafter.taps

    def scratch(self, settings: Settings) -> int:
        """One column."""
        return 1

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """The first segment of each answer."""
        return self.draft(rows, forward, forward_width(forward) - 1)

    def draft(self, rows: Sequence[Row], forward: Forward, column: int) -> list[list[int]]:
        """The base's token of each row, and what the micro decoder drafts behind it, from the
        features in a column."""
        logits_BV = forward.logits.at(range(len(rows)), [0] * len(rows))
        for row, token in zip(rows, choose(logits_BV, rows, [[]] * len(rows)), strict=True):
            row.pending = [token]
        budgets = [
            Budget(
                num_guesses=self.model.config.max_segment - 1,
                depth=row.limit - len(row.tokens) - 1,
                least_probability=row.settings.confidence or 1.0,
            )
            for row in rows
        ]
        taps_BTD = forward.taps(self.taps, [column] * len(rows))
        for row, drafted in zip(rows, self.drafter.propose(rows, taps_BTD, budgets), strict=True):
            row.pending += drafted
        return [row.pending for row in rows]

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Nothing is remembered of prompts."""

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """Each row's segment, in one column."""
        return [
            Columns.chain(row.pending)
            if len(row.pending) == 1
            else Columns([row.pending[-1]], [len(row.pending) - 1], 1, merged={0: row.pending})
            for row in rows
        ]

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """The next segment of each row."""
        advance = [len(row.pending) for row in rows]
        return [
            Outcome(
                emitted=tokens,
                kept=[0],
                advance=further,
                scored=[0],
                drafted=len(tokens) - 1,
                accepted=len(tokens) - 1,
            )
            for tokens, further in zip(self.draft(rows, forward, 0), advance, strict=True)
        ]


def forward_width(forward: Forward) -> int:
    """New columns of a forward."""
    hidden_BQD: Tensor = next(iter(forward.hidden.values()))
    return hidden_BQD.shape[1]
