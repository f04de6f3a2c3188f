"""Segments as the model itself would make them, and drafts fed with its own tokens.

While answering, segments end where the stop head ends them, not where entropies do; a model that
has only seen the latter meets other merges than it learned from.  Here the model drafts from every
token of an answer; a segment extends while the stop head allows it and the drafted token equals
the text (hamburger: on-policy stage; scheduled sampling inside the step).

Shapes: B rows, L tokens, N drafts, K tokens of a draft, J = K - 1 later places.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.smash.data.packing import Batch
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.confidence import cumulative
from lightstride.smash.model.slots import SlotBatch
from lightstride.smash.train.features import draft_features
from lightstride.smash.train.teacher_forced import (
    Starts,
    find_starts,
    likeliest_later,
    predict_drafts,
    tokens_at,
)

CONFIDENCES = (0.2, 0.98)
"""Between these the confidence is drawn, for each answer anew."""


@torch.no_grad()
def own_lengths(
    model: SmashBody,
    batch: Batch,
    unmerged: SlotBatch,
    taps: Sequence[Tensor],
    rng: random.Random,
) -> list[list[int]]:
    """Segment lengths of each answer, by drafts from every token at a confidence drawn for each."""
    num_tokens = model.config.max_segment
    starts = find_starts(unmerged, batch.documents_BL, num_tokens)
    tokens_NK = tokens_at(batch.tokens_BL, starts)
    drafts = predict_drafts(model, taps, starts, tokens_NK)
    drafted_NJ, features_NJF = draft_features(model, batch, drafts)
    right_NJ = (drafted_NJ == tokens_NK[:, 1:]) & starts.valid_NK[:, 1:]
    goes_on_NJ = cumulative(features_NJF, model.config.calibration)
    cut: list[list[int]] = []
    first = 0
    for row in batch.rows:
        for document in row:
            last = first + len(document.answer_A)
            sure_NJ = goes_on_NJ[first:last] >= rng.uniform(*CONFIDENCES)
            runs_N = 1 + (sure_NJ & right_NJ[first:last]).long().cumprod(-1).sum(-1)
            cut.append(lengths_from_runs(runs_N.tolist()))
            first = last
    return cut


def lengths_from_runs(runs: Sequence[int]) -> list[int]:
    """Segment lengths when each segment is as long as the run at its start."""
    lengths: list[int] = []
    start = 0
    while start < len(runs):
        lengths.append(min(runs[start], len(runs) - start))
        start += lengths[-1]
    return lengths


@torch.no_grad()
def feed_own(
    model: SmashBody,
    taps: Sequence[Tensor],
    starts: Starts,
    tokens_NK: Tensor,
    rng: random.Random,
    share: float,
) -> Tensor:
    """Tokens to feed, (N, K): a share of the later ones as the model drafts them, at random."""
    drafted_NJ, _ = likeliest_later(model, predict_drafts(model, taps, starts, tokens_NK))
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    swaps_NJ = torch.rand(drafted_NJ.shape, generator=generator).to(drafted_NJ.device) < share
    return torch.cat([tokens_NK[:, :1], torch.where(swaps_NJ, drafted_NJ, tokens_NK[:, 1:])], dim=1)
