"""The mode `trust`: what the micro decoder drafts is the answer, as published.

After the base's own token the micro decoder drafts on while it is sure enough; nothing is checked.
The next forward reads the segment and leaves one KV entry for it: with gists its tokens as columns
and the merged column behind them, which alone stays; without, the merged column alone.

    with gists     u_1 u_2 u_3 m_3        without     m_3        a lone token     u_1

Shapes: B rows, T taps, D hidden size, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from lightstride.config.decoding import Settings
from lightstride.generate.batch.forward import Forward
from lightstride.generate.modes import Columns, Outcome
from lightstride.generate.rows import Row
from lightstride.generate.sampling import choose
from lightstride.smash.decode.verify import merged_columns
from lightstride.smash.drafters.guesses import Budget
from lightstride.smash.drafters.lookups import LookupHistory
from lightstride.smash.drafters.micro_chain import MicroChain
from lightstride.smash.model.body import SmashBody


class Trust:
    """Steps of one KV entry, nothing checked."""

    reads_prompts = False

    def __init__(self, model: SmashBody, history: LookupHistory) -> None:
        self.model = model
        self.drafter = MicroChain(model, history, checked=False)
        self.taps = self.drafter.taps

    def scratch(self, settings: Settings) -> int:
        """A segment's tokens, and the column that holds them."""
        return self.model.config.max_segment + 1

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[list[int]]:
        """The first segment of each answer."""
        return self.draft(rows, forward, [0] * len(rows), [forward_width(forward) - 1] * len(rows))

    def draft(
        self, rows: Sequence[Row], forward: Forward, logit_columns: list[int], columns: list[int]
    ) -> list[list[int]]:
        """The base's token of each row, and what the micro decoder drafts behind it."""
        logits_BV = forward.logits.at(range(len(rows)), logit_columns)
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
        drafts = self.drafter.propose(rows, forward.taps(self.taps, columns), budgets)
        for row, draft in zip(rows, drafts, strict=True):
            row.pending += draft.tokens
        return [row.pending for row in rows]

    def note_prompt(
        self, rows: Sequence[Row], parts: Sequence[Sequence[int]], forward: Forward
    ) -> None:
        """Nothing is remembered of prompts."""

    def ask(self, rows: Sequence[Row], num_rows: int) -> list[Columns]:
        """Each row's segment."""
        return [self.segment(row.pending) for row in rows]

    def segment(self, tokens: list[int]) -> Columns:
        """The columns of a segment."""
        if len(tokens) == 1:
            return Columns.chain(tokens)
        if not self.model.config.gist:
            return Columns([tokens[-1]], [len(tokens) - 1], 1, merged={0: tokens})
        return merged_columns(tokens, [len(tokens)], gist=True)

    def answer(
        self, rows: Sequence[Row], asked: Sequence[Columns], forward: Forward
    ) -> list[Outcome]:
        """The next segment of each row; of the columns the last stays."""
        advance = [len(row.pending) for row in rows]
        ends = [each.num_logits - 1 for each in asked]
        emitted = self.draft(rows, forward, ends, ends)
        return [
            Outcome(
                emitted=tokens,
                kept=[len(each.tokens) - 1],
                advance=further,
                scored=[end],
                drafted=len(tokens) - 1,
                accepted=len(tokens) - 1,
            )
            for tokens, each, further, end in zip(emitted, asked, advance, ends, strict=True)
        ]


def forward_width(forward: Forward) -> int:
    """New columns of a forward."""
    hidden_BQD: Tensor = next(iter(forward.hidden.values()))
    return hidden_BQD.shape[1]
