"""From the outcomes of a step to the rows' answers, and what is told of them.

Shapes: K places of one row, V vocabulary.
"""

from collections.abc import Callable, Sequence

from lightstride.generate.batch.forward import Logits
from lightstride.generate.modes import Outcome
from lightstride.generate.rows import Row
from lightstride.generate.sampling import near_ties, token_logprobs
from lightstride.generate.session import RowStep

OnEnd = Callable[[Sequence[int]], None]
"""Hears of every answer when it has ended."""


def emit(
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    logits: Logits,
    shares: Sequence[float],
    on_end: OnEnd | None,
) -> list[RowStep]:
    """Accept what a forward of these rows brought; their steps.

    `shares` says how many of its entries each row holds.
    """
    places = [
        (index, column)
        for index, (row, outcome) in enumerate(zip(rows, outcomes, strict=True))
        if row.is_plain
        for column in outcome.scored
    ]
    ties = iter(near_ties(logits.at(*zip(*places, strict=True))) if places else ())
    steps = []
    for index, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
        own = [next(ties) for _ in outcome.scored] if row.is_plain else []
        steps.append(emit_row(row, outcome, own, logits, index, shares[index]))
        if row.finish_reason is not None and on_end is not None:
            on_end(row.tokens)
    return steps


def emit_row(
    row: Row, outcome: Outcome, ties: Sequence[bool], logits: Logits, index: int, share: float
) -> RowStep:
    """Accept a row's tokens up to its cut; the row's step.

    `ties` says which of its scored columns are near ties; it is the forward's row of this index.
    """
    tokens, text = row.extend(outcome.emitted)
    row.steps += 1
    row.drafted += outcome.drafted
    row.accepted += outcome.accepted
    row.kv_entries += len(outcome.kept)
    row.near_ties += sum(ties[: len(tokens)])
    logprobs = None
    if row.settings.logprobs is not None:
        scored_KV = logits.of_row(index, outcome.scored[: len(tokens)])
        logprobs = token_logprobs(scored_KV, tokens, row.settings.logprobs)
    return RowStep(
        key=row.key,
        tokens=tokens,
        text=text,
        finish=row.finish_reason,
        steps=row.steps,
        drafted=row.drafted,
        accepted=row.accepted,
        kv_entries=round(share * min(row.kv_entries, len(row.tokens))),
        cached=row.num_cached,
        near_ties=row.near_ties,
        logprobs=logprobs,
    )
