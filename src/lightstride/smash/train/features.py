"""Features of the tokens of drafts, teacher-forced, in the order of `confidence.py`.

Shapes: N drafts, J places after the first, F features, D hidden size.
"""

import torch
from torch import Tensor

from lightstride.smash.data.packing import Batch
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.lookup import Lookup
from lightstride.smash.train.teacher_forced import (
    Drafts,
    Starts,
    likeliest_later,
    stop_logits_before,
)


@torch.no_grad()
def draft_features(model: SmashBody, batch: Batch, drafts: Drafts) -> tuple[Tensor, Tensor]:
    """The tokens that micro steps would draft, (N, J), and the features of each, (N, J, F)."""
    drafted_NJ, odds_NJ = likeliest_later(model, drafts)
    lookup_votes_NJ = lookup_votes(batch, drafts.starts, drafted_NJ)
    return drafted_NJ, torch.stack(
        [stop_logits_before(model, drafts), odds_NJ, lookup_votes_NJ], dim=-1
    )


def lookup_votes(batch: Batch, starts: Starts, drafted_NJ: Tensor) -> Tensor:
    """Vote of lookup for each drafted token, given the true ones before it, (N, J)."""
    num_places = drafted_NJ.shape[1]
    found = {}
    for row, documents in enumerate(batch.rows):
        start = 0
        for document in documents:
            tokens = [*document.prompt_P.tolist(), *document.answer_A.tolist()]
            first = len(document.prompt_P)
            lookup = Lookup(tokens[:first])
            for place in range(first, len(tokens)):
                lookup.extend(tokens[place : place + 1])
                following = tokens[place + 1 : place + 1 + num_places]
                found[row, start + place - 1] = lookup.prediction(num_places), following
            start += len(tokens)
    values = []
    keys = zip(starts.rows_N.tolist(), starts.ends_N.tolist(), strict=True)
    for key, drafted in zip(keys, drafted_NJ.tolist(), strict=True):
        expected, following = found[key]
        values.append([expected.vote(following[:k], token) for k, token in enumerate(drafted)])
    return torch.tensor(values, device=drafted_NJ.device).view(drafted_NJ.shape)
