"""Chains of an EAGLE-3 head on answers that it was not trained on (`held_out.py`).

A step whose certain token is x_{t+1} drafts by the chain of place t; the tokens it reads are the
text's, which are its own as long as it is right.

Shapes: B rows, L places, N chains, J steps, F features (none).
"""

from collections.abc import Sequence

import torch

from lightstride.smash.data.examples import Example
from lightstride.smash.data.packing import Batch, make_batch, pack_documents
from lightstride.smash.judge.held_out import (
    HeldOutDrafts,
    accuracy_by_place,
    lossless_tokens_per_step,
)
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.reading import BaseReader
from lightstride.smash.train.eagle3_learner import embedded, read_taps
from lightstride.smash.train.eagle3_loss import chain_states
from lightstride.smash.train.teacher_forced import find_starts, tokens_at


@torch.no_grad()
def collect_chains(
    head: Eagle3Head,
    reader: BaseReader,
    examples: Sequence[Example],
    *,
    row_tokens: int,
    num_steps: int,
) -> HeldOutDrafts:
    """Chains from every place of these answers."""
    sizes = [len(each.prompt_P) + len(each.answer_A) for each in examples]
    order = sorted(range(len(examples)), key=sizes.__getitem__)
    found = []
    for plan in pack_documents(order, sizes, row_tokens=row_tokens, num_rows=2):
        batch = make_batch([[examples[d] for d in row] for row in plan], reader.device)
        found.append(chains_of_batch(head, reader, batch, num_steps))
    return HeldOutDrafts(
        torch.cat([each.features_NJF for each in found]),
        torch.cat([each.agrees_NJ for each in found]),
        torch.cat([each.valid_NJ for each in found]),
        tuple(size for each in found for size in each.sizes),
    )


def chains_of_batch(
    head: Eagle3Head, reader: BaseReader, batch: Batch, num_steps: int
) -> HeldOutDrafts:
    """Chains of one batch."""
    taps_BLTD, _ = read_taps(reader, batch)
    given_BLD = embedded(head, reader, batch)
    states = chain_states(head, taps_BLTD, given_BLD, batch.documents_BL, num_steps)
    starts = find_starts(batch.unmerged(), batch.documents_BL, num_steps + 1)
    tokens_M = head.tokens_of_rows()
    drafted = [
        tokens_M[head.logits(each_BLD[starts.rows_N, starts.slots_N]).argmax(-1)]
        for each_BLD in states
    ]
    agrees_NJ = torch.stack(drafted, dim=-1) == tokens_at(batch.greedy_BL, starts)[:, 1:]
    valid_NJ = starts.valid_NK[:, 1:]
    return HeldOutDrafts(
        torch.zeros(*valid_NJ.shape, 0),
        (agrees_NJ & valid_NJ).cpu(),
        valid_NJ.cpu(),
        tuple(len(document.answer_A) for row in batch.rows for document in row),
    )


def summarize_chains(drafts: HeldOutDrafts) -> dict[str, object]:
    """Figures of held-out answers, as a training records them."""
    return {
        "lossless": lossless_tokens_per_step(drafts),
        "agreement": accuracy_by_place(drafts),
        "tokens": sum(drafts.sizes),
    }
