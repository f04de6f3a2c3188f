"""Ceilings of any training: tokens per step that a segmentation itself allows.

A model that segments by the rule emits the rule's segments at best; one whose drafts are
always right is held back by `max_segment`, by the ends of answers, and by tokens that its micro
decoder cannot draft.
"""

from collections.abc import Collection, Sequence
from typing import get_args

from lightstride.smash.data.cutting import (
    Segmentation,
    Strategy,
    cut_by_agreement,
    mean_segment_length,
)

PERFECT = "ideal_drafts"


def ceilings(
    entropies: Sequence[Sequence[float]],
    answers: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    max_segment: int,
    draftable: Collection[int] | None = None,
) -> dict[str, float]:
    """Tokens per step of every strategy at its published threshold, and of ideal drafts.

    `draftable` are the tokens that micro steps can draft; None is all.
    """
    found = {}
    for strategy in get_args(Strategy):
        rule = Segmentation(strategy=strategy, max_segment=max_segment)
        found[strategy] = mean_segment_length([rule.lengths(e, vocab_size) for e in entropies])
    lengths = [perfect_draft_lengths(answer, max_segment, draftable) for answer in answers]
    found[PERFECT] = mean_segment_length(lengths)
    return found


def perfect_draft_lengths(
    answer: Sequence[int], max_segment: int, draftable: Collection[int] | None
) -> list[int]:
    """Segments of an answer whose drafts are right wherever they can be."""
    can = [draftable is None or token in draftable for token in answer]
    agrees = [can[at + 1 : at + max_segment] for at in range(len(answer))]
    return cut_by_agreement(agrees, max_segment)
