"""What no training can exceed: tokens per step that a segmentation itself allows.

A model that segments as the rule says emits the rule's segments at best; one whose drafts are
always right is held back by `max_segment`, by the ends of answers, and by tokens that its micro
decoder cannot say.
"""

from collections.abc import Collection, Sequence
from typing import get_args

from lightstride.smash.data.cutting import (
    Segmentation,
    Strategy,
    agreement,
    oracle_tokens_per_step,
)

IDEAL = "ideal_drafts"


def oracle(
    entropies: Sequence[Sequence[float]],
    answers: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    max_segment: int,
    sayable: Collection[int] | None = None,
) -> dict[str, float]:
    """Tokens per step of every strategy at its published threshold, and of ideal drafts.

    `sayable` are the tokens that micro steps can say; None is all.
    """
    found = {}
    for strategy in get_args(Strategy):
        rule = Segmentation(strategy=strategy, max_segment=max_segment)
        found[strategy] = oracle_tokens_per_step([rule.lengths(e, vocab_size) for e in entropies])
    lengths = [ideal_lengths(answer, max_segment, sayable) for answer in answers]
    found[IDEAL] = oracle_tokens_per_step(lengths)
    return found


def ideal_lengths(
    answer: Sequence[int], max_segment: int, sayable: Collection[int] | None
) -> list[int]:
    """Segments of an answer whose drafts are right wherever they can be."""
    can = [sayable is None or token in sayable for token in answer]
    agrees = [can[at + 1 : at + max_segment] for at in range(len(answer))]
    return agreement(agrees, max_segment)
